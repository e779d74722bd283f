"""uvicorn's httptools protocol with limits: on the head of a request (431 when too large, 408 when too slow), on open
connections (503 with Retry-After), and on the time for which a client may leave its answer unread.

uvicorn has no such limits with httptools; without them one client can fill the memory or hold connections open.
Not here: limits on bodies (see `body`).
"""

from __future__ import annotations

import asyncio
import http
from typing import TYPE_CHECKING

from deepseek.lazy import require

if TYPE_CHECKING:
    from asyncio.events import TimerHandle

HEAD_LIMIT = 16 * 1024
"""Bytes of request line and headers."""
HEAD_SECONDS = 10.0
"""The longest a client may take to send them."""
WRITE_SECONDS = 60.0
"""The longest a client may take none of an answer that is ready; then its connection is cut."""


def limited_protocol(max_connections: int = 65536) -> type[asyncio.Protocol]:
    """Return the protocol class for `uvicorn.Config(http=...)`. Raises MissingExtraError."""
    require("httptools", "serve")
    require("uvicorn", "serve")
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class LimitedProtocol(HttpToolsProtocol):
        _head_bytes = 0
        _raw_bytes = 0
        _in_head = True
        _timer: TimerHandle | None = None
        _stalled: TimerHandle | None = None
        _refusal: http.HTTPStatus | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            self._moves()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            self._stalled = self.loop.call_later(WRITE_SECONDS, self.transport.abort)
            super().pause_writing()

        def resume_writing(self) -> None:
            self._moves()
            super().resume_writing()

        def data_received(self, data: bytes) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self._arm()
            super().data_received(data)
            if self._in_head and not self.transport.is_closing():
                self._raw_bytes += len(data)  # httptools keeps an unfinished header to itself: count what came in
                if self._raw_bytes > HEAD_LIMIT:
                    self._refuse(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._head_bytes = self._raw_bytes = 0
            self._in_head = True
            if len(self.connections) > max_connections:
                self._end(http.HTTPStatus.SERVICE_UNAVAILABLE)

        def on_url(self, url: bytes) -> None:
            self._count(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count(len(name) + len(value) + 4)
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._disarm()
            super().on_headers_complete()

        def send_400_response(self, msg: str) -> None:
            self._refuse(self._refusal or http.HTTPStatus.BAD_REQUEST)

        def _count(self, size: int) -> None:
            self._head_bytes += size
            if self._head_bytes > HEAD_LIMIT:
                self._end(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

        def _end(self, status: http.HTTPStatus) -> None:
            self._refusal = status
            raise ValueError(status.phrase)  # ends the parser; send_400_response follows

        def _arm(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(HEAD_SECONDS, self._refuse, http.HTTPStatus.REQUEST_TIMEOUT)

        def _disarm(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _moves(self) -> None:
            if self._stalled is not None:
                self._stalled.cancel()
                self._stalled = None

        def _refuse(self, status: http.HTTPStatus) -> None:
            self._disarm()
            if self.transport.is_closing():
                return
            body = b'{"error":{"message":"%s","type":"invalid_request_error","param":null,"code":null}}' % (
                status.phrase.encode()
            )
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            if status is http.HTTPStatus.SERVICE_UNAVAILABLE:
                head += "retry-after: 1\r\n"
            head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode() + body)
            self.transport.close()

    return LimitedProtocol
