"""One request on its way through the engine, and how its end reaches whoever asked: a callback, or an event loop.

Not here: when it runs (see `engine`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from deepseek.errors import RequestError
from deepseek.serve.tensor.batch import Arrays, Key

_LOG = logging.getLogger("deepseek.serve")

Answer = Mapping[str, np.ndarray] | Exception


class Waiter(NamedTuple):
    """Somebody who awaits an answer on an event loop."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Mapping[str, np.ndarray]]


class Item:
    """A request that waits or runs. Only the engine changes it."""

    __slots__ = ("deadline", "halt", "inputs", "key", "rows", "sink", "started", "submitted")

    def __init__(
        self,
        inputs: Arrays,
        rows: int,
        key: Key,
        sink: Callable[[Answer], None] | Waiter,
        submitted: float,
        deadline: float,
    ) -> None:
        self.inputs = inputs
        self.rows = rows
        self.key = key
        self.sink = sink
        self.submitted = self.started = submitted
        self.deadline = deadline
        self.halt: Exception | None = None


def deliver(answers: Iterable[tuple[Item, Answer]]) -> None:
    """Hand out answers; all that are awaited on one event loop wake it once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Waiter, Answer]]] = defaultdict(list)
    for item, answer in answers:
        if isinstance(item.sink, Waiter):
            by_loop[item.sink.loop].append((item.sink, answer))
            continue
        try:
            item.sink(answer)
        except Exception:
            _LOG.exception("nobody took an answer")
    for loop, waiting in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(_resolve, waiting)


def _resolve(waiting: Iterable[tuple[Waiter, Answer]]) -> None:
    for waiter, answer in waiting:
        if waiter.future.done():
            continue
        if isinstance(answer, Exception):
            waiter.future.set_exception(answer)
        else:
            waiter.future.set_result(answer)


class Cancelled(Exception):  # noqa: N818 - what a cancelled request ends with, for callbacks
    """The client no longer wants the answer."""


def stopping() -> RequestError:
    """Return the refusal of an engine that closes."""
    return RequestError("the server is stopping", status=503, fix="try again in a moment")


class TooMany(RequestError):
    """A full queue or an overloaded server; `retry_after` in whole seconds, 0 where it is not known."""

    def __init__(self, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__("the server has too many requests waiting", status=429, fix="try again later")


def too_many(retry_after: int = 0) -> RequestError:
    """Return the refusal of a full queue or an overloaded server."""
    return TooMany(retry_after)


def too_late() -> RequestError:
    """Return what a request ends with that waited beyond its deadline."""
    return RequestError("the request waited beyond its deadline", status=504, fix="try again later or allow more time")
