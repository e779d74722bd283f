"""Functions as a callback, for what needs no class: `LambdaCallback(on_step_end=lambda state: print(state.loss))`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from deepseek.errors import ConfigError, did_you_mean
from deepseek.train.callbacks.callback import Callback
from deepseek.train.callbacks.callback_list import MOMENTS

if TYPE_CHECKING:
    from deepseek.train.run_state import RunState

    Function = Callable[[RunState], object]


class LambdaCallback(Callback):
    """Calls the functions given as `on_train_begin=`, `on_step_end=` and so on with the run's state.

    Moments without one cost nothing. Raises ConfigError for a moment that does not exist and for what can't be called.
    """

    def __init__(self, **functions: Function) -> None:
        for moment, function in functions.items():
            if moment not in MOMENTS:
                raise ConfigError("there is no such moment", found=moment, fix=did_you_mean(moment, MOMENTS))
            if not callable(function):
                raise ConfigError(f"{moment} can't be called", found=repr(function), wanted="a function of the state")
            setattr(self, moment, function)
