"""One request and its answer on a connection: uvicorn's cycle, with whole answers written in one piece.

Not here: requests (see `connection`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle as _Base

    from deepseek.serve.rest.reply import Reply
else:
    _Base = object


_CONTROLS = bytes(byte for byte in (*range(32), 127) if byte not in b"\t\r\n")
_SPECIAL = frozenset({b"connection", b"transfer-encoding"})


class Exchange(_Base):
    """What `protocol.limited_protocol` puts before uvicorn's class of a cycle; for a `Connection`."""

    status_lines: dict[int, bytes]

    _begun: Any = None

    def __init__(self, connection: Any, scope: Any, *, keep_alive: bool) -> None:
        super().__init__(
            scope,
            connection.transport,
            connection.flow,
            connection.logger,
            connection.access_logger,
            connection.access_log,
            connection.server_state.default_headers,
            _Signal(),  # type: ignore[arg-type]
            connection.expect_100_continue,
            keep_alive,
            connection.on_response_complete,
        )

    async def send(self, message: Any) -> None:
        """Take a message of ASGI. The head of an answer whose length is known leaves with its body."""
        begun = self._begun
        if begun is not None:
            self._begun = None
            if not message.get("more_body") and self._write_whole(
                begun["status"], begun["headers"], message.get("body", b"")
            ):
                return
            await super().send(begun)
        elif not self.response_started and self._may_wait(message):
            self._begun = message
            return
        await super().send(message)

    def until_left(self, app: Any) -> Any:
        """Return the application as one that ends quietly when it is cancelled because the client left."""

        async def answered(scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            except asyncio.CancelledError:
                if not self.disconnected:
                    raise

        return answered

    def write(self, reply: Reply) -> bool:
        """Write an answer; False where it must go by `send`."""
        return self.keep_alive and not self.access_log and self._write_whole(reply.status, reply.headers, reply.body)

    def _may_wait(self, message: Any) -> bool:
        return (
            message["type"] == "http.response.start"
            and self.keep_alive
            and not self.access_log
            and self.scope["method"] != "HEAD"
            and any(name == b"content-length" for name, _ in message.get("headers", ()))
        )

    def _write_whole(self, status: int, own: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """Write a whole answer; False where there is something special about it."""
        if self.disconnected or self.flow.write_paused:
            return False
        lines = [self.status_lines[status]]
        headers = [*self.default_headers, *own]
        for name, value in headers:
            if name in _SPECIAL or (name == b"content-length" and value != b"%d" % len(body)):
                return False
            lines += (name, b": ", value, b"\r\n")
        lines.append(b"\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(headers) + 2 or len(head.translate(None, _CONTROLS)) != len(head):
            return False  # a header in two lines: refused there
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.transport.write(head + body)
        self.message_event.set()
        self.on_response()
        return True


class _Signal:
    """An `asyncio.Event` that is made only where somebody waits for it."""

    __slots__ = ("_event", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._event: asyncio.Event | None = None

    def set(self) -> None:
        self._is_set = True
        if self._event is not None:
            self._event.set()

    def clear(self) -> None:
        self._is_set = False
        if self._event is not None:
            self._event.clear()

    async def wait(self) -> bool:
        if not self._is_set:
            if self._event is None:
                self._event = asyncio.Event()
            await self._event.wait()
        return True
