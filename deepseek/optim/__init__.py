"""Optimizers, schedules and precision: ours by name, and every name of `torch.optim`.

An optimizer class called without parameters (`AdamW(lr=5e-4)`) waits for the model; see `deferred.py`.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from torch.optim import *  # noqa: F403

    from deepseek.optim.build import OptimizerSettings as OptimizerSettings
    from deepseek.optim.build import build_optimizer as build_optimizer
    from deepseek.optim.build import state_bytes as state_bytes
    from deepseek.optim.calibration import find_fp32_operators as find_fp32_operators
    from deepseek.optim.calibration import sensitivity_table as sensitivity_table
    from deepseek.optim.clipping import AdaptiveClip as AdaptiveClip
    from deepseek.optim.clipping import NormClip as NormClip
    from deepseek.optim.clipping import QuantileClip as QuantileClip
    from deepseek.optim.fp32_modules import keep_fp32 as keep_fp32
    from deepseek.optim.lean_adamw import LeanAdamW as LeanAdamW
    from deepseek.optim.muon import MuonAdamW as MuonAdamW
    from deepseek.optim.offload import OffloadedAdamW as OffloadedAdamW
    from deepseek.optim.precision import Precision as Precision
    from deepseek.optim.schedules import learning_rate as learning_rate
    from deepseek.optim.schedules import schedule_points as schedule_points

_names, __dir__ = lazy_names(
    __name__,
    {
        "AdaptiveClip": "deepseek.optim.clipping:AdaptiveClip",
        "DeferredOptimizer": "deepseek.optim.deferred:DeferredOptimizer",
        "LeanAdamW": "deepseek.optim.lean_adamw:LeanAdamW",
        "MixedPrecisionTrainer": "deepseek.train.mixed_precision:MixedPrecisionTrainer",
        "MuonAdamW": "deepseek.optim.muon:MuonAdamW",
        "NormClip": "deepseek.optim.clipping:NormClip",
        "OffloadedAdamW": "deepseek.optim.offload:OffloadedAdamW",
        "OptimizerSettings": "deepseek.optim.build:OptimizerSettings",
        "Precision": "deepseek.optim.precision:Precision",
        "QuantileClip": "deepseek.optim.clipping:QuantileClip",
        "build_optimizer": "deepseek.optim.build:build_optimizer",
        "find_fp32_operators": "deepseek.optim.calibration:find_fp32_operators",
        "keep_fp32": "deepseek.optim.fp32_modules:keep_fp32",
        "learning_rate": "deepseek.optim.schedules:learning_rate",
        "schedule_points": "deepseek.optim.schedules:schedule_points",
        "sensitivity_table": "deepseek.optim.calibration:sensitivity_table",
        "state_bytes": "deepseek.optim.build:state_bytes",
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
