"""The short way to a model: POSTs of infer and predict go to their handlers without a router or request object.

It stands behind the gateway, so every check there holds. Not here: all other routes (see `app`).
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from deepseek.serve.rest.reply import Reply

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

Handler = Callable[["Scope", "Receive", str, str | None], Awaitable[Reply]]

_INFER, _PREDICT = "/infer", ":predict"
_V1, _V2 = "/v1/models/", "/v2/models/"


class Dispatcher:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, infer: Handler, predict: Handler, at_once: bool) -> None:
        """`at_once`: nothing that handlers wait for first needs a task (a cache elsewhere does)."""
        self._app = app
        self._infer = infer
        self._predict = predict
        self._at_once = at_once

    @staticmethod
    def is_for_model(scope: Scope) -> bool:
        """Return whether `whole` answers a request."""
        return is_for_model(scope)

    def starts_at_once(self, scope: Scope) -> bool:
        """Return whether `whole` may be begun outside a task for a request that is here (see `begun`)."""
        return self._at_once and is_for_model(scope)

    async def whole(self, scope: Scope, receive: Receive) -> Reply:
        """Return the answer to a request for a model. Raises RequestError."""
        verb, name, version = target_of(scope["path"]) or ("", "", None)
        return await (self._infer if verb == _INFER else self._predict)(scope, receive, name, version)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for a model, or pass it on."""
        if is_for_model(scope):
            await (await self.whole(scope, receive))(scope, receive, send)
            return
        scope["app"] = self._app  # so that the router raises its refusals instead of answering them
        await self._app(scope, receive, send)


def is_for_model(scope: Scope) -> bool:
    """Return whether a request is answered here."""
    return scope["type"] == "http" and scope["method"] == "POST" and target_of(scope["path"]) is not None


@functools.lru_cache(maxsize=1024)
def target_of(path: str) -> tuple[str, str, str | None] | None:
    """Return what is wanted (`/infer` or `:predict`), of which model, of which version; None for other paths."""
    for begin, verb in ((_V2, _INFER), (_V1, _PREDICT)):
        if path.startswith(begin) and path.endswith(verb):
            target = split_name(path[len(begin) : -len(verb)])
            return None if target is None else (verb, *target)
    return None


def split_name(middle: str) -> tuple[str, str | None] | None:
    """Return name and version of `NAME` or `NAME/versions/VERSION`; None for anything else."""
    name, separator, version = middle.partition("/versions/")
    if not name or "/" in name or "/" in version or bool(separator) != bool(version):
        return None
    return name, version or None
