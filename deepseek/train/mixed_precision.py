"""`MixedPrecisionTrainer`: the same loop, with the number format and the loss scale in the caller's hands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from deepseek.errors import ConfigError, did_you_mean
from deepseek.hardware import resolve_device
from deepseek.optim.precision import Precision
from deepseek.tasks.task import Task
from deepseek.train.result import TrainResult
from deepseek.train.trainer import OptimizerLike, Trainer

_FP16_KEYS = frozenset({"enable", "loss_scale"})


class MixedPrecisionTrainer:
    """Trains `model` in mixed precision; weights stay float32.

    Two forms: `fp16_params={'enable': True, 'loss_scale': 128}` (a fixed scale; without `loss_scale` a dynamic one from
    65536, factor 2), or `scaler=GradScaler(), fp16_enable=True`. `optimizer` is a class (`AdamW`), one without
    parameters (`AdamW(lr=5e-4)`), or a ready one. Where float16 is slow (any CPU) bfloat16 or float32 is used instead,
    and the log says so.
    Raises ConfigError for unknown keys and contradictions.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerLike = None,
        *,
        fp16_params: Mapping[str, Any] | None = None,
        scaler: torch.amp.GradScaler | None = None,
        fp16_enable: bool | None = None,
        task: Task | None = None,
        device: str = "auto",
    ) -> None:
        params = dict(fp16_params or {})
        for key in params:
            if key not in _FP16_KEYS:
                raise ConfigError("unknown key in fp16_params", found=repr(key), fix=did_you_mean(key, _FP16_KEYS))
        enable = params.get("enable", True if fp16_params is not None else fp16_enable is not False)
        if not isinstance(enable, bool) or (fp16_params is not None and fp16_enable not in (None, enable)):
            raise ConfigError("fp16 is both on and off", found=f"{params} and fp16_enable={fp16_enable}")
        scale = params.get("loss_scale")
        if scale is not None and (
            isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < 2**32
        ):
            raise ConfigError("loss_scale is out of range", found=repr(scale), wanted="a number above 0, below 2**32")
        if scale is not None and scaler is not None:
            raise ConfigError("two loss scales", found="loss_scale and scaler", fix="give one of them")
        self.model = model
        self.optimizer = optimizer
        self.task = task
        self.precision = Precision("fp16" if enable else "fp32", resolve_device(device))
        self.scaler = scaler or (self.precision.scaler(scale) if enable else None)

    def train(
        self,
        train_dataset: Any,
        val_dataset: Any = None,
        *,
        epochs: int | None = None,
        max_steps: int | None = None,
        resume: bool = False,
        **settings: Any,
    ) -> TrainResult:
        """Train on `train_dataset` (see Trainer) and return the numbers; `settings` as for Trainer.

        Raises ConfigError for `precision` and `device` there: this trainer has its own.
        """
        for name in ("precision", "device"):
            if name in settings:
                raise ConfigError(f"'{name}' has no effect here", fix="set it when making the trainer, or use Trainer")
        trainer = Trainer(
            model=self.model,
            train_dataset=train_dataset,
            val_dataset=val_dataset,
            task=self.task,
            optimizer=self.optimizer,
            precision_override=self.precision,
            scaler=self.scaler,
            **settings,
        )
        return trainer.train(epochs=epochs, max_steps=max_steps, resume=resume)
