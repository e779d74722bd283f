"""Whole HTTP replies as ASGI applications. Not here: streamed ones (see `answer`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deepseek.errors import RequestError
from deepseek.serve.rest.wire import dump, error_body, sentence

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_ALWAYS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


class Reply:
    """A status, a body and headers."""

    def __init__(
        self, body: bytes, content_type: str, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status = status
        self.body = body
        self.headers = [
            (b"content-type", content_type.encode("latin-1")),
            (b"content-length", b"%d" % len(body)),
            *_ALWAYS,
        ]
        if headers:
            own = {name.encode("latin-1"): value.encode("latin-1") for name, value in headers.items()}
            self.headers = [*((name, value) for name, value in self.headers if name not in own), *own.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})


class ErrorReply:
    """An error in the form of the route it came from: OpenAI's, or the inference protocol's below `/v2`."""

    def __init__(self, error: RequestError, request_id: str, headers: Mapping[str, str] | None = None) -> None:
        self._error = error
        self._request_id = request_id
        # where a body may be left unread, the connection can't go on
        close = {"connection": "close"} if error.status in (408, 413, 415) else {}
        self._headers = {**close, **(headers or {})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await self.to(scope)(scope, receive, send)

    def to(self, scope: Scope) -> Reply:
        """Return it in the form of the route of a request."""
        path = scope["path"]
        if path == "/v2" or path.startswith("/v2/"):
            body: dict[str, Any] = {"error": sentence(self._error)}
        else:
            body = error_body(self._error, self._request_id)
        return json_reply(body, status=self._error.status, headers=self._headers)


def json_reply(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """Return `value` as a JSON reply."""
    return Reply(dump(value), "application/json", status=status, headers=headers)


def error_reply(error: RequestError, request_id: str, headers: Mapping[str, str] | None = None) -> ErrorReply:
    """Return an error as a reply that takes the form of the route it is sent to."""
    return ErrorReply(error, request_id, headers)
