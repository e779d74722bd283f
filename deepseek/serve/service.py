"""The models of one server by name and version: loaded, replaced, unloaded while requests go on.

A new version is opened, warmed up and answers its golden samples beside the old one; only then the name points to it,
and the old one goes when the last request that holds it ends. What fails leaves everything as it was.
Not here: which version answers (see `registry`), HTTP, running models (see the engines), files (see `folder`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepseek.errors import DeepSeekError, RequestError
from deepseek.serve.folder import FIRST_VERSION, check_bundle, find_bundle, versions_of, without_paths
from deepseek.serve.hosted import Hosted, as_bundle_error, open_model
from deepseek.serve.registry import Registry
from deepseek.serve.tensor.limits import TensorLimits
from deepseek.serve.text.engine import EngineLimits
from deepseek.serve.text.models import TextModel
from deepseek.serve.versions import Slot, check_share, no_model, no_version, scale

_LOG = logging.getLogger("deepseek.serve")

HostedModel = Hosted
Source = TextModel | str | Path | Any
"""A model in memory (TextModel or TensorModel), or where a bundle, or a folder of its versions, lies."""
_GRACE = 1.0
"""Seconds a replaced version goes on, for requests that found it a moment ago."""


class Service(Registry):
    """The models of one server, by name."""

    def __init__(
        self,
        models: Mapping[str, Source],
        limits: EngineLimits | None = None,
        *,
        tensor_limits: TensorLimits | None = None,
        device: str = "auto",
        folder: str | Path | None = None,
    ) -> None:
        """Bundles are opened by `verify`. In `folder` further models are found by name when `load` asks for them."""
        self.limits = limits or EngineLimits()
        self.tensor_limits = tensor_limits
        super().__init__()
        self._device, self._folder = device, None if folder is None else Path(folder)
        self._loading = threading.RLock()
        self._started = False
        self._end = threading.Event()
        self._retiring: list[threading.Thread] = []
        for name, model in models.items():
            if isinstance(model, str | Path):
                self._slots[name] = Slot(Path(model), first=True)
                self._slots[name].pending[FIRST_VERSION] = "loading"
                continue
            self._slots[name] = slot = Slot(None, first=True)
            slot.versions[FIRST_VERSION] = Hosted(name, model, self.limits, tensor_limits)
            slot.shares[FIRST_VERSION] = 1.0
        self._publish()

    def start(self) -> None:
        """Let requests run as soon as a model is ready."""
        self._started = True
        for hosted in self._all():
            if hosted.kind == "text":
                hosted.engine.start()

    def verify(self) -> None:
        """Open what lies in files, and have every model answer its golden samples; those that do are ready.

        A model that fails fails alone: it gets 503. Raises the first error, once all were tried, if none is ready.
        """
        problem: DeepSeekError | None = None
        for name, slot in list(self._slots.items()):
            try:
                if slot.versions:
                    self._verify_first(slot)
                else:
                    self.load(name)
            except DeepSeekError as error:
                problem = problem or error
                _LOG.error("the model '%s' is not served: %s", name, error)
        if problem is not None and not any(hosted.state == "ready" for hosted in self._all()):
            raise problem

    def load(
        self, name: str, path: str | Path | None = None, version: str | None = None, *, share: float | None = None
    ) -> Hosted:
        """Open a version beside those that serve, check it, and let it take over, or only `share` of the requests.

        Without `path` from where the name was loaded before, or from the server's folder; without `version` the
        highest there is. Versions that no share is left for are unloaded once nobody uses them. A few seconds or
        more; call it in a thread of its own. Raises RequestError (404, 400), or BundleError where it fails: then
        everything is as before.
        """
        check_share(share)
        with self._loading:
            try:
                where, version = self._where(name, path, version)
            except DeepSeekError as error:
                self._never_begun(name, error)
                raise
            slot = self._begin(name, version, None if path is None else Path(path))
            self._tell("loading", name, version)
            try:
                hosted = self._open(name, where, version)
            except DeepSeekError as error:
                self._fail(name, version, error)
                self._tell("failed", name, version)
                raise
            with self._lock:
                replaced = self._switch(slot, hosted, where, share)
            for old in replaced:
                self._retire(old)
            self._tell("loaded", name, version)
        return hosted

    def reload(self, name: str) -> Hosted:
        """Load a name's highest version anew from where it lies. Raises what `load` raises."""
        return self.load(name)

    def told(self, name: str, error: DeepSeekError) -> str:
        """Return what is wrong with a name's bundle as clients may know it: without the path to it."""
        slot = self._slots.get(name)
        return without_paths(error.problem, (None if slot is None else slot.source, self._folder))

    def rollback(self, name: str) -> Hosted:
        """Return to the version that served before the main one. Raises RequestError (409) where there is none."""
        with self._lock:
            slot = self._slot(name)
            main = slot.main
            past = [version for version in slot.past if main is None or version != main.version]
        if not past:
            raise RequestError(f"the model '{name}' has no earlier version", status=409, fix="load one by its version")
        if past[-1] in slot.versions:
            self.set_weight(name, past[-1], 1.0)
            return slot.versions[past[-1]]
        return self.load(name, version=past[-1])

    def unload(self, name: str, version: str | None = None) -> None:
        """Stop serving a version, or all of a name, and free it once nobody uses it. Raises RequestError (404)."""
        with self._loading, self._lock:
            slot = self._slot(name)
            if version is not None and version not in slot.versions:
                raise no_version(name, version, slot.versions)
            going = [slot.versions.pop(one) for one in list(slot.versions) if version in (None, one)]
            for hosted in going:
                slot.shares.pop(hosted.version, None)
                slot.pending[hosted.version], slot.reasons[hosted.version] = "unloaded", "unloaded"
            scale(slot.shares, 1.0)
            self._publish()
        for hosted in going:
            self._retire(hosted)
            self._tell("unloaded", name, hosted.version)

    def abort(self) -> None:
        """Fail all running requests with 503."""
        for hosted in self._all():
            hosted.engine.abort(RequestError("the server is stopping", status=503, fix="try again in a moment"))

    def close(self) -> None:
        """Fail what still runs and stop the engines."""
        self.stopping = True
        self._end.set()
        for hosted in self._all():
            hosted.engine.close()
        for thread in list(self._retiring):
            thread.join(10.0)

    def _where(self, name: str, path: str | Path | None, version: str | None) -> tuple[Path, str]:
        """Return the bundle that is meant, and its version. Raises RequestError (404), BundleError for a bad path."""
        slot = self._slots.get(name)
        source = Path(path) if path is not None else slot.source if slot is not None else None
        if source is None and self._folder is not None:
            source = find_bundle(self._folder, name)
        if source is None:
            raise no_model(name, self._slots)
        check_bundle(name, source)
        found = versions_of(source)
        if path is not None and version is not None and len(found) == 1 and FIRST_VERSION in found:
            return found[FIRST_VERSION], version  # a plain bundle may be given any version
        known = {**(slot.paths if slot is not None else {}), **found}
        if version is None:
            version = next(reversed(found), FIRST_VERSION)
        if version not in known and found:
            raise no_version(name, version, known)
        return known.get(version, source), version

    def _begin(self, name: str, version: str, source: Path | None) -> Slot:
        with self._lock:
            slot = self._slots.get(name)
            if slot is None:
                slot = self._slots[name] = Slot(source, first=False)
            if source is not None or slot.source is None:
                slot.source = source
            if slot.first and not slot.versions:
                slot.pending.clear()
            slot.pending[version] = "loading"
            slot.reasons.pop(version, None)
            return slot

    def _open(self, name: str, path: Path, version: str) -> Hosted:
        """Return a version that answered its golden samples. Raises DeepSeekError."""
        try:
            model = open_model(path, self._device, self.tensor_limits)
        except (Exception, SystemExit) as error:
            raise as_bundle_error(name, "can't be loaded", error) from error
        hosted = Hosted(name, model, self.limits, self.tensor_limits, version=version)
        hosted.verify()
        try:
            if self._started:
                hosted.engine.start()
        except Exception as error:
            raise as_bundle_error(name, "can't be run", error) from error
        return hosted

    def _verify_first(self, slot: Slot) -> None:
        """Check the models that were given in memory."""
        for hosted in slot.versions.values():
            hosted.verify()
            if self._started and hosted.kind == "tensor":
                hosted.engine.start()

    def _fail(self, name: str, version: str, error: DeepSeekError) -> None:
        slot = self._slots[name]
        with self._lock:
            if version in slot.versions:
                slot.pending.pop(version, None)
            else:
                slot.pending[version] = "failed"
            slot.reasons[version] = self.told(name, error)

    def _never_begun(self, name: str, error: DeepSeekError) -> None:
        """Note that what the server was to begin with is nothing that can be opened."""
        slot = self._slots.get(name)
        if slot is None:
            return
        with self._lock:
            for version in [one for one, state in slot.pending.items() if state == "loading"]:
                slot.pending[version], slot.reasons[version] = "failed", self.told(name, error)

    def _switch(self, slot: Slot, hosted: Hosted, path: Path, share: float | None) -> list[Hosted]:
        """Let the name point to a new version; return the versions that go."""
        version = hosted.version
        going = [slot.versions.pop(version)] if version in slot.versions else []
        others = {one: slot.shares.get(one, 0.0) for one in slot.versions}
        if share is None or share >= 1 or not others:
            if slot.main is not None:
                slot.past = [one for one in slot.past if one != slot.main.version] + [slot.main.version]
            going += [slot.versions.pop(one) for one in others]
            slot.shares = {version: 1.0}
        else:
            scale(others, 1.0 - share)
            slot.shares = {**others, version: share}
        slot.versions[version] = hosted
        slot.paths[version] = path
        slot.pending.pop(version, None)
        slot.pending |= {old.version: "unloaded" for old in going if old.version != version}
        self._publish()
        return going

    def _retire(self, hosted: Hosted) -> None:
        """Close a version in the background, once the last request that holds it has ended."""

        def finish() -> None:
            self._end.wait(_GRACE)
            hosted.wait_until_free(self._end)
            hosted.state = "unloading"
            hosted.engine.close(0.0 if self._end.is_set() else self.limits.request_seconds)
            hosted.state = "unloaded"
            with self._lock:
                self._retiring.remove(threading.current_thread())

        thread = threading.Thread(target=finish, name=f"deepseek-unload-{hosted.name}", daemon=True)
        with self._lock:
            self._retiring.append(thread)
        thread.start()
