"""How good a segmentation is: Dice and IoU of each class, over all pixels of all images.

Dice = 2 * shared / (found + wanted), IoU = shared / (found or wanted).
Not here: counting pixels (`metrics.confusion`), distances between surfaces.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deepseek.errors import DataError


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


def score_confusion(counts: Tensor) -> SegmentationScores:
    """Return the scores of a confusion matrix (classes, classes). Raises DataError where it counts nothing."""
    table = counts.cpu().double().numpy()
    if table.sum() == 0:
        raise DataError("there is nothing to evaluate", found="no pixel with a target", wanted="at least one")
    shared, found, wanted = table.diagonal(), table.sum(axis=0), table.sum(axis=1)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of a class that is nowhere
        dice, iou = 2 * shared / (found + wanted), shared / (found + wanted - shared)
    return SegmentationScores(dice, iou, float(shared.sum() / table.sum()))
