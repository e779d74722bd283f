"""The models of one server: each with its engine, its name and whether it answers its golden samples.

Not here: HTTP, and where bundles come from.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal

from deepseek.errors import BundleError, DeepSeekError, RequestError, did_you_mean
from deepseek.serve.text.engine import Engine, EngineLimits
from deepseek.serve.text.models import TextModel


class HostedModel:
    """One model that is served."""

    def __init__(self, name: str, model: TextModel, limits: EngineLimits) -> None:
        self.name = name
        self.model = model
        self.engine = Engine(model, limits)
        self.created = int(time.time())
        self.state: Literal["checking", "ready", "failed"] = "checking"


class Service:
    """The models of one server, by name."""

    def __init__(self, models: Mapping[str, TextModel], limits: EngineLimits | None = None) -> None:
        self.hosted = {name: HostedModel(name, model, limits or EngineLimits()) for name, model in models.items()}
        self.stopping = False

    def start(self) -> None:
        """Start the engines."""
        for hosted in self.hosted.values():
            hosted.engine.start()

    def verify(self) -> None:
        """Have every model answer its golden samples; those that do are ready.

        Raises the first model's error once all were checked.
        """
        problem: DeepSeekError | None = None
        for hosted in self.hosted.values():
            try:
                hosted.model.verify()
                hosted.state = "ready"
            except Exception as error:
                hosted.state = "failed"
                problem = problem or _as_bundle_error(hosted.name, error)
        if problem is not None:
            raise problem

    @property
    def ready(self) -> bool:
        """Whether every model answered its golden samples and the server is not stopping."""
        return not self.stopping and all(hosted.state == "ready" for hosted in self.hosted.values())

    def find(self, name: str | None) -> HostedModel:
        """Return a model by name; without a name, the only one there is.

        Raises RequestError: 404 for a name that is not served, 400 where one is needed, 503 while it is not ready.
        """
        if name is None:
            if len(self.hosted) > 1:
                raise RequestError("'model' is missing", field="model", wanted=" or ".join(sorted(self.hosted)))
            hosted = next(iter(self.hosted.values()))
        elif name in self.hosted:
            hosted = self.hosted[name]
        else:
            raise RequestError(
                f"the model '{name}' does not exist here",
                field="model",
                status=404,
                fix=did_you_mean(name, self.hosted),
            )
        if self.stopping or hosted.state != "ready":
            reason = "the server is stopping" if self.stopping else f"the model '{hosted.name}' is not ready"
            raise RequestError(reason, status=503, fix="try again in a moment")
        return hosted

    def retry_after(self) -> int:
        """Return the seconds after which a refused client should try again."""
        return max((hosted.engine.retry_after() for hosted in self.hosted.values()), default=1)

    def abort(self) -> None:
        """Fail all running requests with 503."""
        for hosted in self.hosted.values():
            hosted.engine.abort(RequestError("the server is stopping", status=503, fix="try again in a moment"))

    def close(self) -> None:
        """Fail what still runs and stop the engines."""
        self.stopping = True
        for hosted in self.hosted.values():
            hosted.engine.close()


def _as_bundle_error(name: str, error: Exception) -> DeepSeekError:
    if isinstance(error, DeepSeekError):
        return error
    failure = BundleError(f"the model '{name}' fails on its golden samples", found=f"{type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
