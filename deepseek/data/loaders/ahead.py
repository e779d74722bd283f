"""Work done ahead of its turn by one thread: results come in order, errors in the place of the result they spoil."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Calls `make(position)` from `start` on, up to `stop` (without end for None), at most `depth` ahead of `get`."""

    def __init__(self, make: Callable[[int], T], start: int, stop: int | None, depth: int) -> None:
        self._ready: queue.Queue[tuple[T] | BaseException] = queue.Queue(depth)
        self._closed = threading.Event()
        arguments = (make, start, stop, self._ready, self._closed)
        self._thread = threading.Thread(target=_make_ahead, args=arguments, name="deepseek-loader", daemon=True)
        self._thread.start()

    def get(self) -> T:
        """Return the next result, or raise what came in its place."""
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item[0]

    def close(self) -> None:
        """End the thread; it finishes the piece it is at."""
        self._closed.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._ready.get(timeout=0.01)


def _make_ahead(
    make: Callable[[int], T],
    position: int,
    stop: int | None,
    ready: queue.Queue[tuple[T] | BaseException],
    closed: threading.Event,
) -> None:
    while not closed.is_set() and (stop is None or position < stop):
        try:
            ready.put((make(position),))
        except BaseException as error:
            ready.put(error)
            return
        position += 1
