"""One version of a model that is served: its engine, who uses it, and how long each phase of its loading took.

Not here: which versions there are, and how they follow each other (see `service`).
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from deepseek.errors import BundleError, DeepSeekError
from deepseek.serve.tensor.engine import TensorEngine
from deepseek.serve.tensor.limits import TensorLimits
from deepseek.serve.text.engine import EngineLimits
from deepseek.serve.text.engine_choice import make_engine

if TYPE_CHECKING:
    from deepseek.bundle import Bundle

_LOG = logging.getLogger("deepseek.serve")

_LOOK = 0.05
"""Seconds between looks at whether a version is still held."""

State = Literal["loading", "checking", "ready", "failed", "unloading", "unloaded"]


class Hosted:
    """A model with its engine. `model` is a TextModel or a TensorModel, as `kind` says, and so is `engine`."""

    def __init__(
        self,
        name: str,
        model: Any,
        limits: EngineLimits,
        tensor_limits: TensorLimits | None = None,
        *,
        version: str = "1",
        timings: Mapping[str, float] | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.model = model
        self.kind: Literal["text", "tensor"] = "tensor" if hasattr(model, "signature") else "text"
        self.created = int(time.time())
        self._state: State = "checking"
        self.bundle: Bundle | None = getattr(model, "bundle", None)
        self.fingerprint: str = getattr(model, "fingerprint", "")
        self.profile: Mapping[str, Any] | None = None if self.bundle is None else _profile(self.bundle.path)
        self._limits, self._tensor_limits = limits, tensor_limits
        self._timings = dict(timings or {})
        self._engine: Any = None
        self._verified = False
        self._leases = 0
        self._lock = threading.Lock()

    @property
    def engine(self) -> Any:
        """The engine of its kind, made at first use: what it takes from a model may be measured in `verify`."""
        if self._engine is None:
            with self._lock:
                if self._engine is None:
                    self._engine = self._make_engine()
        return self._engine

    @property
    def state(self) -> State:
        """Where it stands; it has failed also when its engine, once ready, is broken for good."""
        return "failed" if self._state == "ready" and getattr(self._engine, "failed", False) else self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state

    @property
    def timings(self) -> dict[str, float]:
        """Seconds of each phase of loading."""
        return {**self._timings, **getattr(self.model, "timings", {})}

    @property
    def leases(self) -> int:
        """Requests that hold this version."""
        return self._leases

    def verify(self) -> None:
        """Answer the golden samples; then it is ready. Raises DeepSeekError, and the state is `failed`."""
        start = time.monotonic()
        try:
            self.model.verify()
        except (Exception, SystemExit) as error:
            self.state = "failed"
            raise as_bundle_error(self.name, "fails on its golden samples", error) from error
        finally:
            self._timings["verify"] = time.monotonic() - start
        self.state = "ready"

    def hold(self) -> None:
        """Count one more request that uses it."""
        with self._lock:
            self._leases += 1

    def release(self) -> None:
        """Count one less."""
        with self._lock:
            self._leases -= 1

    def wait_until_free(self, stop: threading.Event) -> None:
        """Wait until no request holds it, or `stop` is set."""
        while self._leases and not stop.wait(_LOOK):  # looked at now and then: letting go must cost a request nothing
            pass

    def _make_engine(self) -> Any:
        if self.kind == "text":
            return make_engine(self.model, self._limits)
        return TensorEngine(self.model, self._tensor_limits or getattr(self.model, "limits", None))


class Lease:
    """Holds a version for as long as the `with` block lasts; it is not unloaded in between."""

    __slots__ = ("_hosted",)

    def __init__(self, hosted: Hosted) -> None:
        self._hosted = hosted

    def __enter__(self) -> Hosted:
        return self._hosted

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hosted.release()


def open_model(path: Path, device: str, tensor_limits: TensorLimits | None) -> Any:
    """Return a bundle as a TextModel (a language model with its tokenizer) or as a TensorModel. Raises BundleError."""
    from deepseek.bundle import load
    from deepseek.serve.tensor.model import TensorModel
    from deepseek.serve.text.models import BundleModel

    start = time.monotonic()
    bundle = load(path, device=device)
    if bundle.config.task == "language_modeling" and bundle.tokenizer is not None:
        return BundleModel(bundle)
    opened = time.monotonic() - start
    model = TensorModel(bundle, tensor_limits)
    model.timings = {"open": opened, **model.timings}
    return model


def as_bundle_error(name: str, problem: str, error: BaseException) -> DeepSeekError:
    """Return an error as one that says which model and what."""
    if isinstance(error, DeepSeekError):
        return error
    failure = BundleError(f"the model '{name}' {problem}", found=f"{type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _profile(bundle: Path) -> Mapping[str, Any] | None:
    """Return `profile.json` of a bundle, what its training data looked like; None where there is none."""
    try:
        found = json.loads((bundle / "profile.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        _LOG.warning("%s can't be read, so drift is not watched: %s", bundle / "profile.json", error)
        return None
    return found if isinstance(found, dict) else None
