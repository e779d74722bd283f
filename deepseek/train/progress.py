"""The progress bar of a training run: step, loss, tokens/s, time left. At a terminal only, unless asked for."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_UPDATES = 0.2


class TrainingProgress:
    """A bar over `total` steps; `show=False` makes every call free."""

    def __init__(self, total: int, done: int, unit: str, *, show: bool) -> None:
        self.unit = unit
        self._next = 0.0
        self._bar: Progress | None = None
        if show:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("training", total=total, completed=done, status="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, loss: float, rate: float) -> None:
        """Show `step` steps done, the latest loss, and items a second."""
        if self._bar is None:
            return
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _SECONDS_BETWEEN_UPDATES
            self._bar.update(self._task, completed=step, status=f"loss {loss:.3f}  {rate:,.0f} {self.unit}/s")

    def finish(self, step: int) -> None:
        """Show the last step, whatever the time since the last update."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)


def wants_progress(wish: bool | str) -> bool:
    """Return whether to show a bar: as asked, or for `auto` when a person is watching."""
    return sys.stderr.isatty() if wish == "auto" else bool(wish)
