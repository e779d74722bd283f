"""The short way to a model: POSTs of infer and predict go to their handlers without a router or request object.

It stands behind the gateway, so every check there holds. Not here: all other routes (see `app`).
"""

from __future__ import annotations

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

    def __init__(self, app: ASGIApp, *, infer: Handler, predict: Handler) -> None:
        self._app = app
        self._infer = infer
        self._predict = predict

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for a model, or pass it on."""
        if scope["type"] == "http" and scope["method"] == "POST":
            path: str = scope["path"]
            target: tuple[str, str | None] | None = None
            if path.startswith(_V2) and path.endswith(_INFER):
                target, handler = split_name(path[len(_V2) : -len(_INFER)]), self._infer
            elif path.startswith(_V1) and path.endswith(_PREDICT):
                target, handler = split_name(path[len(_V1) : -len(_PREDICT)]), self._predict
            if target is not None:
                reply = await handler(scope, receive, *target)
                await reply(scope, receive, send)
                return
        scope["app"] = self._app  # so that the router raises its refusals instead of answering them
        await self._app(scope, receive, send)


def split_name(middle: str) -> tuple[str, str | None] | None:
    """Return name and version of `NAME` or `NAME/versions/VERSION`; None for anything else."""
    name, separator, version = middle.partition("/versions/")
    if not name or "/" in name or "/" in version or bool(separator) != bool(version):
        return None
    return name, version or None
