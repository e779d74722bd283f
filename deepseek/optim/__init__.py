"""Optimizers, schedules and precision: ours by name, and every name of `torch.optim`.

An optimizer class called without parameters (`AdamW(lr=5e-4)`) waits for the model; see `deferred.py`.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from torch.optim import *  # noqa: F403

    from deepseek.optim.precision import Precision as Precision

_names, __dir__ = lazy_names(
    __name__,
    {
        "DeferredOptimizer": "deepseek.optim.deferred:DeferredOptimizer",
        "MixedPrecisionTrainer": "deepseek.train.mixed_precision:MixedPrecisionTrainer",
        "Precision": "deepseek.optim.precision:Precision",
    },
    fallback="torch.optim",
)


def __getattr__(name: str) -> Any:
    value = _names(name)
    if name.startswith("__") or not inspect.isclass(value):
        return value
    from torch.optim import Optimizer

    from deepseek.optim.deferred import deferrable

    if issubclass(value, Optimizer) and value is not Optimizer and value.__module__.startswith("torch.optim"):
        globals()[name] = value = deferrable(value)
    return value
