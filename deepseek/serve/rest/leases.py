"""Holding a model while a request uses it, and refusing a request that is for another kind of model.

Not here: versions and when they are unloaded (see `service`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepseek.errors import RequestError
from deepseek.serve.rest.schema import MODEL_NAME

if TYPE_CHECKING:
    from deepseek.serve.hosted import Hosted, Lease
    from deepseek.serve.service import Service


def lease(service: Service, name: str | None, version: str | None = None) -> Lease:
    """Return a model to be held by a `with` block, to whose end it is not unloaded.

    Raises RequestError: 404 for a name or version that is not served, 503 while it is not ready.
    """
    for given in (name, version):
        if given is not None and not MODEL_NAME.fullmatch(given):
            raise RequestError("this model does not exist here", field="model", status=404)
    return service.use(name, version)


def note(state: dict[str, Any], hosted: Hosted) -> None:
    """Note in the request's `state` which model answers, for the audit log."""
    state["model"] = hosted.name
    state["version"] = hosted.version


def only_text(hosted: Hosted) -> None:
    """Raise RequestError (400) unless it is a language model."""
    if hosted.kind != "text":
        raise RequestError(
            f"the model '{hosted.name}' is not a language model",
            field="model",
            fix=f"POST /v1/models/{hosted.name}:predict",
        )
