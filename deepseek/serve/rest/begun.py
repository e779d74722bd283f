"""A coroutine that is run at once up to its first wait; mostly that is its end, and no task is needed.

What Python 3.12 calls an eager task, for 3.11 too. Code before the first wait runs outside a task, so it must not ask
for one (`asyncio.timeout` does). Not here: who begins what (see `connection`, `body`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


class Begun(Generic[_T]):
    """`done` says whether it came to its end; then `result` has what it returned. Else await it for the rest."""

    __slots__ = ("_awaited", "_work", "done", "result")

    def __init__(self, work: Coroutine[Any, Any, _T]) -> None:
        """Run `work`. Raises what it raises."""
        self.done = False
        self._work = work
        self._step(work.send, None)

    def __await__(self) -> Generator[Any, Any, _T]:
        while not self.done:
            try:
                yield self._awaited
            except BaseException as error:  # cancelled: the coroutine must hear of it
                self._step(self._work.throw, error)
            else:
                self._step(self._work.send, None)
        return self.result

    def _step(self, go: Callable[[Any], Any], value: BaseException | None) -> None:
        try:
            self._awaited = go(value)
        except StopIteration as end:
            self.done = True
            self.result: _T = end.value
