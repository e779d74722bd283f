"""The average precision of a detector on batches. Not here: what it is (`deepseek.metrics.detection`)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from deepseek.metrics.detection import AveragePrecision, DetectionScores
from deepseek.tasks.detection import Detection, objects_of
from deepseek.tasks.task import Batch, eval_mode, to_device


def evaluate_detection(
    model: nn.Module,
    batches: Iterable[Batch],
    num_classes: int,
    task: Detection | None = None,
    device: torch.device | None = None,
) -> DetectionScores:
    """Return the scores of `model` in eval mode on batches as the task `detection` takes them.

    Without a `task`, all detections of a score above 0.001 count, as is usual for average precision. Raises DataError
    where no batch has an object.
    """
    task = task or Detection(min_score=0.001)
    precision = AveragePrecision(num_classes)
    with eval_mode(model):
        for batch in batches:
            moved: Batch = batch if device is None else to_device(batch, device)
            precision.update(task.predict(model, moved["pixel_values"]), objects_of(batch))
    return precision.result()
