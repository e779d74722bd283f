"""The short way to a model: POSTs of infer and predict go to their handlers without a router or request object.

It stands behind the gateway, so every check there holds. Not here: all other routes (see `app`).
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from deepseek.errors import RequestError
from deepseek.serve.rest.reply import Reply
from deepseek.serve.rest.shortcut import AtOnce

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class Way(NamedTuple):
    """How one verb is answered; both are given the name of a model and the version asked for."""

    whole: Callable[[Scope, Receive, str, str | None], Awaitable[Reply]]
    at_once: Callable[[Scope, str, str | None], AtOnce | None]
    """What answers bodies of requests with the head of a scope without waiting (see `shortcut`)."""


_INFER, _PREDICT = "/infer", ":predict"
_V1, _V2 = "/v1/models/", "/v2/models/"


class Dispatcher:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, infer: Way, predict: Way, at_once: bool) -> None:
        """`at_once`: nothing that is waited for first needs a task (a cache elsewhere does)."""
        self._app = app
        self._ways = {_INFER: infer, _PREDICT: predict}
        self._at_once = at_once

    @staticmethod
    def is_for_model(scope: Scope) -> bool:
        """Return whether `whole` answers a request."""
        return is_for_model(scope)

    def starts_at_once(self, scope: Scope) -> bool:
        """Return whether `whole` may be begun outside a task for a request that is here (see `begun`)."""
        return self._at_once and is_for_model(scope)

    def at_once(self, scope: Scope) -> AtOnce | None:
        """Return what answers bodies of requests with the head of `scope` without waiting; None where nothing does."""
        if not self.starts_at_once(scope):
            return None
        verb, name, version = _known_target(scope)
        return self._ways[verb].at_once(scope, name, version)

    async def whole(self, scope: Scope, receive: Receive) -> Reply:
        """Return the answer to a request for a model. Raises RequestError."""
        verb, name, version = _known_target(scope)
        return await self._ways[verb].whole(scope, receive, name, version)

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


def _known_target(scope: Scope) -> tuple[str, str, str | None]:
    target = target_of(scope["path"])
    if target is None:
        raise RequestError("there is no such path here", status=404)
    return target


def split_name(middle: str) -> tuple[str, str | None] | None:
    """Return name and version of `NAME` or `NAME/versions/VERSION`; None for anything else."""
    name, separator, version = middle.partition("/versions/")
    if not name or "/" in name or "/" in version or bool(separator) != bool(version):
        return None
    return name, version or None
