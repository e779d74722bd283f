"""One clock for every framework: torch's own hook after each optimizer step.

Not here: the frameworks' own timers, which each leave out something else.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class StepClock:
    """Between `with` and its end, stamps the time after each step of any optimizer of this process."""

    def __init__(self) -> None:
        self.stamps: list[float] = []
        self.started = time.perf_counter()

    def __enter__(self) -> StepClock:
        self.started = time.perf_counter()
        self._handle = register_optimizer_step_post_hook(self._stamp)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._handle.remove()

    def step_seconds(self) -> list[float]:
        """Return the seconds of each step, the first one counted from `with`."""
        starts = [self.started, *self.stamps]
        return [end - start for start, end in zip(starts, self.stamps, strict=False)]

    def _stamp(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.stamps.append(time.perf_counter())
