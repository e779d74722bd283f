"""Whole HTTP replies as ASGI applications. Not here: streamed ones (see `answer`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deepseek.errors import RequestError
from deepseek.serve.rest.wire import dump, error_body

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


class Reply:
    """A status, a body and headers."""

    def __init__(
        self, body: bytes, content_type: str, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        self._status = status
        self._body = body
        self._headers = {
            "content-type": content_type,
            "content-length": str(len(body)),
            "x-content-type-options": "nosniff",
            "cache-control": "no-store",
            **(headers or {}),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self._headers.items()]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})


def json_reply(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """Return `value` as a JSON reply."""
    return Reply(dump(value), "application/json", status=status, headers=headers)


def error_reply(error: RequestError, request_id: str, headers: Mapping[str, str] | None = None) -> Reply:
    """Return an error in OpenAI's form. The connection is closed where a body may be left unread."""
    close = {"connection": "close"} if error.status in (408, 413, 415) else {}
    return json_reply(error_body(error, request_id), status=error.status, headers={**close, **(headers or {})})
