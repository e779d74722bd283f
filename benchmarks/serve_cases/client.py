"""A lean HTTP/1.1 client for load: keep-alive, no pipelining, one parse per answer, so that the server is what counts.

`closed_loop`: so many connections, each sends its next request when the last is answered; gives requests a second.
`open_loop`: requests leave at a fixed rate whether or not others were answered; times count from when a request was
due, so that a slow server can't hide behind a client that waits for it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple


class Reply(NamedTuple):
    """One answer: its status, seconds since the request was due, whether it said when to try again, and its body."""

    status: int
    seconds: float
    retry_after: bool
    body: bytes


class Connection(asyncio.Protocol):
    """One connection with at most one request under way."""

    def __init__(self, done: Callable[[Connection, Reply | None], None]) -> None:
        self._done = done
        self._data = bytearray()
        self._due = 0.0
        self._end = -1
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport  # type: ignore[assignment]

    def send(self, request: bytes, due: float) -> None:
        """Send a request that was due at a time of `time.perf_counter`."""
        self._due = due
        assert self.transport is not None
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Take a piece of the answer."""
        self._data += data
        if self._end < 0:
            stop = self._data.find(b"\r\n\r\n")
            if stop < 0:
                return
            start = self._data.lower().find(b"content-length:", 0, stop)
            length = int(self._data[start + 15 : self._data.find(b"\r", start)]) if start >= 0 else 0
            self._end = stop + 4 + length
        if len(self._data) < self._end:
            return
        whole = bytes(self._data[: self._end])
        self._data.clear()
        self._end = -1
        head, _, body = whole.partition(b"\r\n\r\n")
        status = int(head[9:12])
        retry = status >= 400 and b"retry-after:" in head.lower()
        self._done(self, Reply(status, time.perf_counter() - self._due, retry, body))

    def connection_lost(self, error: Exception | None) -> None:
        """Tell that this connection is gone."""
        self._done(self, None)


def post(port: int, path: str, body: bytes, content_type: str = "application/json", extra: str = "") -> bytes:
    """Return the bytes of a POST."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: {content_type}\r\n{extra}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def closed_loop(port: int, request: bytes, connections: int, seconds: float, warm: float) -> list[Reply]:
    """Return the answers that came within `seconds`, after `warm` seconds that do not count."""
    loop = asyncio.get_running_loop()
    replies: list[Reply] = []
    start = time.perf_counter() + warm
    end = start + seconds
    over: asyncio.Future[None] = loop.create_future()

    def done(connection: Connection, reply: Reply | None) -> None:
        now = time.perf_counter()
        if now > end or reply is None:
            if not over.done():
                over.set_result(None)
            return
        if now > start:
            replies.append(reply)
        connection.send(request, now)

    made = [await loop.create_connection(lambda: Connection(done), "127.0.0.1", port) for _ in range(connections)]
    for _, connection in made:
        connection.send(request, time.perf_counter())
    await over
    for transport, _ in made:
        transport.abort()
    return replies


async def open_loop(port: int, request: bytes, rate: float, seconds: float, warm: float, most: int) -> list[Reply]:
    """Return the answers to requests that are due at `rate` a second; `most` connections bound what is under way.

    A request that finds no free connection waits for one, and its time counts from when it was due. Requests due in
    the first `warm` seconds do not count. Raises RuntimeError where more than 1% are without an answer at the end.
    """
    loop = asyncio.get_running_loop()
    replies: list[Reply] = []
    free: deque[Connection] = deque()
    late: deque[float] = deque()
    start = counts_from = time.perf_counter() + 1e9
    closing = False

    def done(connection: Connection, reply: Reply | None) -> None:
        if reply is None or closing:
            return
        if counts_from <= time.perf_counter() - reply.seconds:
            replies.append(reply)
        if late:
            connection.send(request, late.popleft())
        else:
            free.append(connection)

    made = [await loop.create_connection(lambda: Connection(done), "127.0.0.1", port) for _ in range(most)]
    free.extend(connection for _, connection in made)
    start = time.perf_counter()
    counts_from = start + warm
    total = int((seconds + warm) * rate)
    for index in range(total):
        due = start + index / rate
        delay = due - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        elif index % 16 == 0:
            await asyncio.sleep(0)
        if free:
            free.popleft().send(request, due)
        else:
            late.append(due)
    await asyncio.sleep(0.5)
    closing = True
    for transport, _ in made:
        transport.abort()
    lost = most - len(free) + len(late)
    if lost > total / 100:
        raise RuntimeError(f"{lost} of {total} requests were not answered in time")
    return replies


def quantile(values: list[float], share: float) -> float:
    """Return the value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
