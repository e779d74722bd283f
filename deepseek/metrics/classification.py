"""How good a classifier is: accuracy, and precision, recall and F1 of each class and their mean.

F1 = 2 * right / (found + wanted) of a class; macro-F1 is the mean over the classes that are there or were predicted,
which an unbalanced data set can't flatter. Not here: scores of probabilities (`metrics.roc`, `metrics.calibration`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepseek.errors import DataError
from deepseek.nn.losses import IGNORE

Floats = NDArray[np.float64]


class ClassScores(NamedTuple):
    """Scores 0 to 1; by class (classes,), NaN where a class is neither there nor predicted."""

    accuracy: float
    precision: Floats
    """Share of what was taken for the class that is of it; 0 where nothing was."""
    recall: Floats
    """Share of the class that was found; 0 for a class that is only predicted."""
    f1: Floats

    @property
    def macro_f1(self) -> float:
        """The mean of `f1` over the classes that are there or predicted."""
        return float(np.nanmean(self.f1))


def score_classes(counts: Tensor) -> ClassScores:
    """Return the scores of a confusion matrix (classes, classes). Raises DataError where it counts nothing."""
    table = counts.cpu().double().numpy()
    if table.sum() == 0:
        raise DataError("there is nothing to evaluate", found="no label in any batch", wanted="at least one")
    right, found, wanted = table.diagonal(), table.sum(axis=0), table.sum(axis=1)
    nowhere = (found + wanted) == 0
    precision, recall = right / np.maximum(found, 1), right / np.maximum(wanted, 1)
    f1 = 2 * right / np.maximum(found + wanted, 1)
    for values in (precision, recall, f1):
        values[nowhere] = np.nan
    return ClassScores(float(right.sum() / table.sum()), precision, recall, f1)


def count_correct(scores: Tensor, labels: Tensor, top: int = 1) -> int:
    """Return how many `labels` (items,) are among the `top` highest `scores` (items, classes). -100 never is."""
    return int(_hits(scores, labels, top).sum())


class Accuracy:
    """Share of the items whose class is among the `top` with the highest scores, over batches."""

    def __init__(self, top: int = 1) -> None:
        self.top = top
        self._right: Tensor | None = None
        self._total: Tensor | None = None

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add `scores` (items, classes) and `labels` (items,) int64, -100 for an item that does not count."""
        right, total = _hits(scores, labels, self.top).sum(), (labels != IGNORE).sum()
        self._right = right if self._right is None else self._right + right
        self._total = total if self._total is None else self._total + total

    def result(self) -> float:
        """Return the share, 0 to 1. Raises DataError when nothing counted."""
        if self._right is None or self._total is None or int(self._total) == 0:
            raise DataError("there is nothing to evaluate", found="no label in any batch", wanted="at least one")
        return int(self._right) / int(self._total)


def _hits(scores: Tensor, labels: Tensor, top: int) -> Tensor:
    best = scores.topk(min(top, scores.shape[-1]), dim=-1).indices
    return torch.any(best == labels[:, None], dim=-1)
