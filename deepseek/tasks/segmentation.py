"""Segmentation: a class for each pixel. Batches: `pixel_values` and `masks`.

`masks` is int64 (batch, *space), classes from 0 (background), `ignore_index` where there is none. The model gives
logits (batch, channels, *space), one channel for foreground against background; or, with deep supervision, a named
tuple with `heads` (batch, heads, channels, *space), whose losses are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.errors import DataError
from deepseek.metrics.confusion import ConfusionMatrix
from deepseek.metrics.segmentation import score_confusion
from deepseek.nn.losses import IGNORE
from deepseek.nn.segmentation_losses import ALPHA, dice_focal_loss
from deepseek.tasks.task import Batch, Loss, LossSum


class Segmentation:
    """Dice plus Focal loss of each image, averaged over the heads; `focal_weight` 0 leaves Dice alone.

    `gamma` and `alpha` are the Focal loss's: see `deepseek.nn.segmentation_losses.focal_loss`.
    """

    name = "segmentation"

    def __init__(
        self,
        focal_weight: float = 1.0,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = ALPHA,
        ignore_index: int = IGNORE,
    ) -> None:
        self.focal_weight, self.gamma, self.alpha = focal_weight, gamma, alpha
        self.ignore_index = ignore_index

    def count(self, batch: Batch) -> int:
        """Return the number of images."""
        return len(batch["pixel_values"])

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss summed over the images, and their number."""
        return Loss(self.loss_sum(model, batch), self.count(batch))

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss alone. Raises DataError for masks of another size or with unknown classes."""
        return self._loss_sum(model(batch["pixel_values"]), batch["masks"])

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the mean loss."""
        return {"loss": mean_loss}

    def evaluator(self) -> SegmentationEvaluator:
        """Return what measures the loss, Dice and IoU of each class and their means, and the share of right pixels."""
        return SegmentationEvaluator(self)

    def _loss_sum(self, output: Any, masks: Tensor) -> Tensor:
        heads = [output] if isinstance(output, Tensor) else output.heads.unbind(1)
        _check_masks(masks, heads[0], self.ignore_index)
        losses = [
            dice_focal_loss(logits, masks, self.gamma, self.alpha, self.ignore_index, self.focal_weight).sum()
            for logits in heads
        ]
        return torch.stack(losses).mean()

    def predict(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return probabilities (batch, channels, *space) for `inputs` (batch, channels, *space), in float32.

        `chosen_classes` makes a mask of them.
        """
        with torch.inference_mode():
            return _probabilities(model(inputs))


class SegmentationEvaluator:
    """Measures `loss`, `dice`, `iou`, `accuracy`, and `dice_1`, `iou_1`, ... of each class, from one pass."""

    def __init__(self, task: Segmentation) -> None:
        self._task, self._loss = task, LossSum()
        self._matrix: ConfusionMatrix | None = None

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add a batch."""
        output = model(batch["pixel_values"])
        self._loss.add(self._task._loss_sum(output, batch["masks"]), self._task.count(batch))
        chances = _probabilities(output)
        if self._matrix is None:
            self._matrix = ConfusionMatrix(max(chances.shape[1], 2), self._task.ignore_index)
        self._matrix.update(chosen_classes(chances), batch["masks"])

    def result(self) -> dict[str, float]:
        """Return the numbers; a class that is neither there nor predicted is left out. Raises DataError."""
        if self._matrix is None:
            raise DataError("there is nothing to evaluate", found="no batch", wanted="at least one")
        scores = score_confusion(self._matrix.result())
        found = {"loss": self._loss.mean(), **scores.report()}
        for name, values in (("dice", scores.dice), ("iou", scores.iou)):
            found |= {f"{name}_{label}": float(value) for label, value in enumerate(values) if not math.isnan(value)}
        return found


def _probabilities(output: Any) -> Tensor:
    logits: Tensor = (output if isinstance(output, Tensor) else output.logits).float()
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def _check_masks(masks: Tensor, logits: Tensor, ignore_index: int) -> None:
    """Check masks in eager code; their classes on a CPU only, where it costs no synchronisation."""
    if torch.compiler.is_compiling():
        return
    wanted = (logits.shape[0], *logits.shape[2:])
    if masks.shape != wanted:
        raise DataError("masks have the wrong shape", found=tuple(masks.shape), wanted=tuple(wanted))
    if masks.dtype != torch.int64:
        raise DataError("masks must hold class numbers", found=masks.dtype, wanted="torch.int64")
    if masks.device.type != "cpu":
        return
    highest = max(logits.shape[1], 2) - 1
    wrong = masks[(masks != ignore_index) & ((masks < 0) | (masks > highest))]
    if len(wrong):
        raise DataError(
            "masks have an unknown class", found=int(wrong[0]), wanted=f"0 to {highest}, or {ignore_index} for none"
        )


def chosen_classes(probabilities: Tensor) -> Tensor:
    """Return the likeliest class of each pixel, int64 (batch, *space), from what `Segmentation.predict` returned."""
    if probabilities.shape[1] == 1:
        return (probabilities[:, 0] > 0.5).long()
    return probabilities.argmax(1)
