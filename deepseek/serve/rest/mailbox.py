"""From the engine's thread to the event loop: a request's events, and its end when the client goes away.

Not here: what a client sees of them (see `answer`, `generate`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from deepseek.serve.text.engine import Done, Engine, Event, Failed, Job, Piece

if TYPE_CHECKING:
    from starlette.types import Receive


class Mailbox:
    """Events on their way from the engine's thread to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """Take an event; called on the engine's thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def get(self) -> Event:
        """Return the next event."""
        return await self._events.get()


@contextlib.asynccontextmanager
async def submitted(engine: Engine, jobs: Sequence[Job], receive: Receive) -> AsyncIterator[Mailbox]:
    """Have `jobs` answered while the block lasts; what is left at its end, or when the client leaves, is cancelled.

    Raises RequestError: 429 when the queue is full, 503 when the engine is closing.
    """
    mailbox = Mailbox()
    ticket = engine.submit(jobs, mailbox.put)
    watcher = asyncio.create_task(_on_disconnect(receive, ticket.cancel))
    try:
        yield mailbox
    finally:
        ticket.cancel()
        watcher.cancel()


async def collected(mailbox: Mailbox, jobs: Sequence[Job]) -> tuple[list[list[Piece]], list[Done]]:
    """Return the pieces and the end of each answer. Raises the error of the first that fails."""
    pieces: list[list[Piece]] = [[] for _ in jobs]
    ends: dict[int, Done] = {}
    while len(ends) < len(jobs):
        event = await mailbox.get()
        if isinstance(event, Piece):
            pieces[event.choice].append(event)
        elif isinstance(event, Failed):
            raise event.error
        else:
            ends[event.choice] = event
    return pieces, [ends[choice] for choice in range(len(jobs))]


async def _on_disconnect(receive: Receive, cancel: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    cancel()
