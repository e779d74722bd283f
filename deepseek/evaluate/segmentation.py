"""The Dice and IoU of a segmentation model on batches. Not here: what they are (`deepseek.metrics.segmentation`)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from deepseek.metrics.confusion import confusion
from deepseek.metrics.segmentation import SegmentationScores, score_confusion
from deepseek.tasks.segmentation import Segmentation, chosen_classes
from deepseek.tasks.task import Batch, eval_mode, to_device


def evaluate_segmentation(
    model: nn.Module,
    batches: Iterable[Batch],
    task: Segmentation | None = None,
    device: torch.device | None = None,
) -> SegmentationScores:
    """Return the scores of `model` in eval mode on batches of `pixel_values` and `masks`.

    Raises DataError where no pixel has a target.
    """
    task = task or Segmentation()
    total: Tensor | None = None
    with eval_mode(model):
        for batch in batches:
            moved: Batch = batch if device is None else to_device(batch, device)
            chances = task.predict(model, moved["pixel_values"])
            classes = max(chances.shape[1], 2)
            counts = confusion(chosen_classes(chances), moved["masks"], classes, task.ignore_index)
            total = counts if total is None else total + counts
    return score_confusion(torch.zeros(1, 1) if total is None else total)
