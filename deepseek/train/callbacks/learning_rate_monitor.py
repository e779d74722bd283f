"""The learning rate of every parameter group in the run's log; the loop itself logs that of the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.errors import ConfigError
from deepseek.train.callbacks.callback import Callback

if TYPE_CHECKING:
    from deepseek.train.run_state import RunState


class LearningRateMonitor(Callback):
    """Logs `lr/<group>` every `every` steps: the group's `name` where it has one, else its number.

    With `weight_decay`, the decay of each group too. Raises ConfigError for `every` below 1.
    """

    def __init__(self, every: int = 10, *, weight_decay: bool = False) -> None:
        if every < 1:
            raise ConfigError("LearningRateMonitor's every is wrong", found=every, wanted="at least 1 step")
        self.every = every
        self.weight_decay = weight_decay

    def on_step_end(self, state: RunState) -> None:
        if state.step % self.every:
            return
        values = {}
        for number, group in enumerate(state.optimizer.param_groups):
            name = group.get("name", number)
            values[f"lr/{name}"] = float(group["lr"])
            if self.weight_decay and "weight_decay" in group:
                values[f"weight_decay/{name}"] = float(group["weight_decay"])
        state.log(values)
