"""How long a run takes, and stopping it in time; by the monotonic clock, which no change of the date moves."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from deepseek.errors import ConfigError
from deepseek.train.callbacks.callback import Callback

if TYPE_CHECKING:
    from deepseek.train.run_state import RunState

_UNITS = (86400, 3600, 60, 1)  # seconds of a day, an hour, a minute, a second


class Timer(Callback):
    """Ends the run after the step in which `stop_after` is reached: seconds, a timedelta, or text ("90s", "2h30m").

    Everything counts, from the first step on: validation and saving too, and what a resumed run took before. After each
    epoch `time/epoch_seconds` and `time/step_seconds` (of its steps, with all that came between them) are logged.
    `clock` returns seconds that never go back.

    Attributes: `elapsed` and `epoch_seconds` (of each epoch done). Raises ConfigError for a wrong duration.
    """

    def __init__(
        self, stop_after: float | str | timedelta | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stop_after = None if stop_after is None else _seconds(stop_after)
        self.epoch_seconds: list[float] = []
        self._clock = clock
        self._before = 0.0
        self._began: float | None = None
        self._epoch_began = 0.0
        self._epoch_step = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the first step of the run, those between an end and a resume left out."""
        return self._before + (self._clock() - self._began if self._began is not None else 0.0)

    def on_train_begin(self, state: RunState) -> None:
        if state.step == 0:
            self._before, self.epoch_seconds = 0.0, []
            self._epoch_began, self._epoch_step = 0.0, 0
        self._began = self._clock()

    def on_step_end(self, state: RunState) -> None:
        if self.stop_after is not None and self.elapsed >= self.stop_after:
            state.stop(f"the {self.stop_after:g} seconds of the timer are over")

    def on_epoch_end(self, state: RunState) -> None:
        now = self.elapsed
        seconds, steps = now - self._epoch_began, state.step - self._epoch_step
        self.epoch_seconds.append(seconds)
        self._epoch_began, self._epoch_step = now, state.step
        state.log({"time/epoch_seconds": seconds, "time/step_seconds": seconds / max(1, steps)})

    def close(self) -> None:
        self._before, self._began = self.elapsed, None

    def state_dict(self) -> dict[str, Any]:
        return {
            "elapsed": self.elapsed,
            "epoch_seconds": list(self.epoch_seconds),
            "epoch_began": self._epoch_began,
            "epoch_step": self._epoch_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._began is not None:
            return  # a run set back to a checkpoint: the time it took is gone all the same
        self._before = state["elapsed"]
        self.epoch_seconds = list(state["epoch_seconds"])
        self._epoch_began, self._epoch_step = state["epoch_began"], state["epoch_step"]


def _seconds(duration: float | str | timedelta) -> float:
    if isinstance(duration, timedelta):
        value = duration.total_seconds()
    elif isinstance(duration, str):
        parts = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", duration.replace(" ", ""))
        value = sum(float(text or 0) * unit for text, unit in zip(parts.groups(), _UNITS, strict=True)) if parts else 0
    else:
        value = float(duration)
    if not 0 < value < float("inf"):
        raise ConfigError("Timer's stop_after is wrong", found=repr(duration), wanted="seconds above 0, or '2h30m'")
    return value
