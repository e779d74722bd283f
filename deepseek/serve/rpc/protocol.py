"""What gRPC itself brings: status codes, messages that can't be read, streams that fall silent or lose their reader.

Not here: keys and rates (see `calls`). Source: gRPC's status codes, https://grpc.io/docs/guides/status-codes/
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from deepseek.errors import RequestError

Write = Callable[[bytes], Awaitable[None]]
WRITE_SECONDS = 60.0
"""The longest a client may take none of a stream's answers; then all that the call holds is let go."""
_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "FAILED_PRECONDITION",
    413: "RESOURCE_EXHAUSTED",
    415: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class StalledError(RequestError):
    """The client takes none of a stream's answers (408)."""

    def __init__(self, pending: asyncio.Future[None]) -> None:
        """`pending`: the sending of a message, before whose end gRPC can't even send an error."""
        problem = f"the client took none of the answers for {WRITE_SECONDS:g} s"
        super().__init__(problem, status=408, fix="read them as they come")
        self.pending = pending


def code_name(status: int) -> str:
    """Return the name of the gRPC code for an HTTP status."""
    return _CODES.get(status, "INTERNAL" if status >= 500 else "INVALID_ARGUMENT")


def parse(message_class: Any, raw: bytes) -> Any:
    """Return `raw` as a message. Raises RequestError (400) for bytes that are none."""
    try:
        return message_class.FromString(raw)
    except _unreadable():
        name = message_class.DESCRIPTOR.full_name
        raise RequestError(
            f"the message is not a {name}", wanted="the protocol's field types, texts in UTF-8"
        ) from None


@functools.cache
def _unreadable() -> tuple[type[Exception], ...]:
    """Return what is raised for bytes that are no message."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    return DecodeError, UnicodeDecodeError


async def received(messages: AsyncIterator[bytes], idle_seconds: float) -> AsyncIterator[bytes]:
    """Yield the messages of a stream. Raises RequestError (408) where none comes for so long."""
    iterator = aiter(messages)
    while True:
        try:
            async with asyncio.timeout(idle_seconds):
                message = await anext(iterator, None)
        except TimeoutError:
            problem = f"no message came for {idle_seconds:g} s"
            raise RequestError(problem, status=408, fix="open a new stream when there is one") from None
        if message is None:
            return
        yield message


def writer(context: Any) -> Write:
    """Return what writes to a stream. Raises RequestError: 499 where the client is gone, 408 where it takes nothing."""
    import grpc  # type: ignore[import-untyped]

    async def write(message: bytes) -> None:
        sending = asyncio.ensure_future(context.write(message))
        try:
            await asyncio.wait((sending,), timeout=WRITE_SECONDS)
        except asyncio.CancelledError:
            sending.cancel()
            raise
        if not sending.done():
            raise StalledError(sending)
        try:
            sending.result()
        except grpc.aio.InternalError:
            raise RequestError("the client went away", status=499) from None

    return write
