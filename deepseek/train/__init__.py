"""Training: one loop that reads top to bottom (`loop.py`), its arithmetic (`step.py`), and the front doors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.train.config import TrainConfig as TrainConfig
    from deepseek.train.mixed_precision import MixedPrecisionTrainer as MixedPrecisionTrainer
    from deepseek.train.result import TrainResult as TrainResult
    from deepseek.train.trainer import Trainer as Trainer
    from deepseek.train.verify import verify_trainer as verify_trainer

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "MixedPrecisionTrainer": "deepseek.train.mixed_precision:MixedPrecisionTrainer",
        "TrainConfig": "deepseek.train.config:TrainConfig",
        "TrainResult": "deepseek.train.result:TrainResult",
        "Trainer": "deepseek.train.trainer:Trainer",
        "verify_trainer": "deepseek.train.verify:verify_trainer",
    },
)
