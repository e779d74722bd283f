"""`train_qat`: a trained float model in, its int8 form out after some more training, with figures before and after.

Prepares, trains with the normal `Trainer`, converts. Not here: the three steps themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from deepseek.errors import QuantizationError
from deepseek.nn.fake_quant.layers import prepared_layers
from deepseek.quantization.calibrate import CalibrationData
from deepseek.quantization.config import QuantConfig
from deepseek.quantization.qat.convert import convert_qat
from deepseek.quantization.qat.prepare import prepare_qat
from deepseek.quantization.report import tensor_bytes
from deepseek.tasks.task import Task, evaluate
from deepseek.train.trainer import Trainer

_FROZEN_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class QatReport:
    """What quantization-aware training did. Metrics are those of the task over the validation data."""

    before: dict[str, float]
    """Of the float model."""
    rounded: dict[str, float]
    """Of the model rounded with its first ranges, before training."""
    after: dict[str, float]
    """Of the int8 model."""
    bytes_before: int
    bytes_after: int
    layers: tuple[str, ...]
    """The layers that became int8."""
    steps: int
    losses: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON has them."""
        return dataclasses.asdict(self)


class QatResult(NamedTuple):
    """`model`: the int8 model, in eval mode. `prepared`: the trained model that it was made from."""

    model: nn.Module
    report: QatReport
    prepared: nn.Module


def train_qat(
    model: nn.Module,
    task: Task,
    train_dataset: Any,
    val_dataset: Iterable[Any],
    config: QuantConfig | None = None,
    *,
    calibration_data: CalibrationData | None = None,
    freeze_norms_after: int | None = None,
    **settings: Any,
) -> QatResult:
    """Train a copy of `model` with the rounding of its int8 form, and return that form with the figures.

    `train_dataset` and `settings` (max_steps, learning_rate, output_dir, resume, ...) are those of `Trainer`;
    `val_dataset` is a list of batches, or another iterable that can be read again. `calibration_data` defaults to the
    first batches of `train_dataset`, where that is a list. Batch norms freeze after half of the steps, or after
    `freeze_norms_after` batches. `model` itself is not changed.

    Raises as `prepare_qat` and `Trainer` do; QuantizationError where `val_dataset` is used up by reading it.
    """
    if iter(val_dataset) is val_dataset:
        raise QuantizationError(
            "val_dataset is read several times", found=type(val_dataset).__name__, wanted="a list of batches"
        )
    if calibration_data is None and isinstance(train_dataset, Sequence) and not isinstance(train_dataset, str | Path):
        calibration_data = train_dataset[:8]
    if freeze_norms_after is None:
        freeze_norms_after = _half_way(train_dataset, settings)
    resume, device = bool(settings.pop("resume", False)), next(model.parameters()).device
    before = evaluate(model, val_dataset, task, device)
    prepared = prepare_qat(model, config, calibration_data=calibration_data, freeze_norms_after=freeze_norms_after)
    rounded = evaluate(prepared, val_dataset, task, device)
    trainer = Trainer(model=prepared, train_dataset=train_dataset, val_dataset=val_dataset, task=task, **settings)
    run = trainer.train(resume=resume)
    converted = convert_qat(prepared)
    after = evaluate(converted, val_dataset, task, next(prepared.parameters()).device)
    report = QatReport(
        before,
        rounded,
        after,
        tensor_bytes(model),
        tensor_bytes(converted),
        tuple(prepared_layers(prepared)),
        run.steps,
        tuple(run.losses),
    )
    return QatResult(converted, report, prepared)


def _half_way(train_dataset: Any, settings: dict[str, Any]) -> int | None:
    """Return after how many micro-batches half of the training is done; None where that can't be told."""
    steps, parts = settings.get("max_steps"), int(settings.get("gradient_accumulation_steps", 1))
    if steps is not None:
        return max(1, int(steps * parts * _FROZEN_SHARE))
    if hasattr(train_dataset, "__len__") and not isinstance(train_dataset, str) and settings.get("time_budget") is None:
        return max(1, int((settings.get("epochs") or 1) * len(train_dataset) * _FROZEN_SHARE))
    return None
