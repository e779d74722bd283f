"""How good a segmentation is: Dice and IoU of each class, over all pixels of all images.

Dice = 2 * shared / (found + wanted), IoU = shared / (found or wanted). Not here: distances between surfaces.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepseek.errors import DataError
from deepseek.nn.losses import IGNORE
from deepseek.tasks.segmentation import Segmentation, chosen_classes
from deepseek.tasks.task import Batch, to_device


class SegmentationScores(NamedTuple):
    """Scores by class, (classes,), 0 to 1; a class neither there nor predicted is NaN."""

    dice: NDArray[np.float64]
    iou: NDArray[np.float64]
    accuracy: float
    """Share of the pixels with the right class."""

    def report(self) -> dict[str, float]:
        """Return `dice` and `iou`, means over the classes but the background (class 0), and `accuracy`.

        Where nothing but background is there or predicted, the two are the background's.
        """
        chosen = slice(1, None) if not np.isnan(self.dice[1:]).all() else slice(None)
        return {
            "dice": float(np.nanmean(self.dice[chosen])),
            "iou": float(np.nanmean(self.iou[chosen])),
            "accuracy": self.accuracy,
        }


def confusion(found: Tensor, wanted: Tensor, num_classes: int, ignore_index: int = IGNORE) -> Tensor:
    """Return how many pixels of class i (row) were taken for class j (column): (num_classes, num_classes), int64.

    Both are int64 of any one shape; pixels whose `wanted` is `ignore_index` don't count. Raises DataError for a class
    outside 0 to num_classes - 1.
    """
    valid = wanted != ignore_index
    found, wanted = found[valid], wanted[valid]
    for name, values in (("prediction", found), ("mask", wanted)):
        if values.numel() and not (0 <= int(values.min()) and int(values.max()) < num_classes):
            raise DataError(
                f"a {name} has an unknown class",
                found=f"{int(values.min())} to {int(values.max())}",
                wanted=f"0 to {num_classes - 1}",
            )
    return torch.bincount(wanted * num_classes + found, minlength=num_classes**2).view(num_classes, num_classes)


def score_confusion(counts: Tensor) -> SegmentationScores:
    """Return the scores of a confusion matrix (classes, classes). Raises DataError where it counts nothing."""
    table = counts.cpu().double().numpy()
    if table.sum() == 0:
        raise DataError("there is nothing to evaluate", found="no pixel with a target", wanted="at least one")
    shared, found, wanted = table.diagonal(), table.sum(axis=0), table.sum(axis=1)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of a class that is nowhere
        dice, iou = 2 * shared / (found + wanted), shared / (found + wanted - shared)
    return SegmentationScores(dice, iou, float(shared.sum() / table.sum()))


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
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            moved: Any = batch if device is None else to_device(batch, device)
            chances = task.predict(model, moved["pixel_values"])
            classes = max(chances.shape[1], 2)
            counts = confusion(chosen_classes(chances), moved["masks"], classes, task.ignore_index)
            total = counts if total is None else total + counts
    finally:
        model.train(was_training)
    return score_confusion(torch.zeros(1, 1) if total is None else total)
