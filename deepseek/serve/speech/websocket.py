"""Speech over a websocket, `/v1/audio/stream`: a start in JSON, samples as binary messages, an end in JSON.

client: {"type": "start", "model": NAME, "sample_rate": 16000, "encoding": "pcm16"}, samples ..., {"type": "end"}
server: {"type": "started", ...}, {"type": "partial" or "final", "text": ..., ...} ..., {"type": "done", ...}
An error comes as {"type": "error", "error": {...}, "request_id": ...}, and the socket is closed with 1008 (1011 for a
fault of the server). The API key was checked before the upgrade. One message is worked on at a time; while it is, the
socket is not read, so a client that sends faster than is recognised has to wait.
Not here: what the messages mean (see `session`), keys (see the gateway). Source: RFC 6455.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from deepseek.errors import RequestError
from deepseek.serve.rest.answer import internal_error
from deepseek.serve.rest.body import parse_json
from deepseek.serve.rest.schema import checked
from deepseek.serve.rest.wire import dump, error_body
from deepseek.serve.speech.session import Session, StartForm, Streams

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

_LOG = logging.getLogger("deepseek.serve")

PATH = "/v1/audio/stream"
_KEY = "key."  # a subprotocol that carries the API key; it is never chosen
_TEXT_BYTES = 4096
_DONE, _REFUSED, _FAILED = 1000, 1008, 1011


class _LeftError(Exception):
    """The client closed the socket or is gone."""


class SpeechSocket:
    """The endpoint, an ASGI application."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one socket. A refusal before the upgrade is raised, and the gateway answers it over HTTP."""
        with self._streams.room():
            await receive()  # websocket.connect
            await send({"type": "websocket.accept", "subprotocol": _protocol(scope.get("subprotocols", ()))})
            line = _Line(receive, send, self._streams)
            try:
                await self._serve(line, scope["state"])
                await line.close(_DONE)
            except (_LeftError, OSError):
                return
            except Exception as error:
                request_id: str = scope["state"]["request_id"]
                refusal = error if isinstance(error, RequestError) else internal_error(request_id)
                if refusal is not error:
                    _LOG.error("request %s failed", request_id, exc_info=error)
                await line.refuse(refusal, request_id)

    async def _serve(self, line: _Line, state: dict[str, Any]) -> None:
        first = await line.read()
        if isinstance(first, bytes) or first.get("type") != "start":
            raise RequestError("the first message is the start", field="type", wanted='{"type": "start", ...}')
        async with self._streams.session(checked(StartForm, first), state) as session:
            await line.write([session.started()])
            while not await self._step(line, session):
                if self._streams.stopping:
                    raise RequestError("the server is stopping", status=503, fix="try again in a moment")

    async def _step(self, line: _Line, session: Session) -> bool:
        """Handle one message; return whether it was the last."""
        message = await line.read()
        if isinstance(message, bytes):
            await line.write(await session.take(message))
            return False
        if message != {"type": "end"}:
            raise RequestError("after the start come samples or the end", field="type", wanted='{"type": "end"}')
        await line.write(await session.finish())
        return True


class _Line:
    """The two directions of a socket, with their times."""

    def __init__(self, receive: Receive, send: Send, streams: Streams) -> None:
        self._receive, self._send, self._limits = receive, send, streams.limits

    async def read(self) -> bytes | dict[str, Any]:
        """Return the next message. Raises RequestError: 408 where none comes, 400 for what is no JSON object."""
        try:
            async with asyncio.timeout(self._limits.idle_seconds):
                message = await self._receive()
        except TimeoutError:
            problem = f"no message came for {self._limits.idle_seconds:g} s"
            raise RequestError(problem, status=408, fix="open another stream when there is sound") from None
        if message["type"] == "websocket.disconnect":
            raise _LeftError
        data: bytes | None = message.get("bytes")
        if data is not None:
            return data
        text: str = message.get("text") or ""
        if len(text) > _TEXT_BYTES:
            raise RequestError("the text message is too long", status=413, wanted=f"up to {_TEXT_BYTES} characters")
        return parse_json(text.encode("utf-8", "surrogatepass"), finite=True)

    async def write(self, messages: Iterable[dict[str, Any]]) -> None:
        """Send messages."""
        for message in messages:
            await self._out({"type": "websocket.send", "text": dump(message).decode("utf-8")})

    async def refuse(self, error: RequestError, request_id: str) -> None:
        """Tell an error and close."""
        try:
            await self.write([{"type": "error", **error_body(error, request_id)}])
            await self.close(_FAILED if error.status == 500 else _REFUSED)
        except (_LeftError, OSError):
            return

    async def close(self, code: int) -> None:
        """Close the socket."""
        await self._out({"type": "websocket.close", "code": code})

    async def _out(self, message: Message) -> None:
        """Send; a client that does not read for too long, or is gone, has left."""
        try:
            async with asyncio.timeout(self._limits.send_seconds):
                await self._send(message)
        except TimeoutError:
            raise _LeftError from None


def _protocol(offered: Iterable[str]) -> str | None:
    """Return the subprotocol to choose: a browser that offers some wants one of them."""
    return next((name for name in offered if not name.startswith(_KEY)), None)
