"""Whether a classifier's certainty is worth what it says: the expected calibration error.

Answers are put in bins by the probability of the chosen class; in each bin that probability's mean should be the
share of right answers. The error is the mean distance of the two, weighted by the bins' items.
Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepseek.errors import ConfigError, DataError
from deepseek.nn.losses import IGNORE


class CalibrationError:
    """Collects probabilities and labels over batches in `bins` of equal width."""

    def __init__(self, bins: int = 15) -> None:
        if bins < 1:
            raise ConfigError("too few bins", found=bins, wanted="at least 1")
        self.bins = bins
        self._sums = torch.zeros(3, bins, dtype=torch.float64)

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add `probabilities` (items, classes) and `labels` (items,) int64, -100 for an item that does not count."""
        certainty, choice = probabilities.float().max(dim=-1)
        counts = labels != IGNORE
        certainty, right = certainty[counts].double().cpu(), (choice == labels)[counts].double().cpu()
        bins = (certainty * self.bins).ceil().long().sub(1).clamp(0, self.bins - 1)  # (low, high], as in the paper
        self._sums.index_add_(1, bins, torch.stack([torch.ones_like(certainty), certainty, right]))

    def result(self) -> float:
        """Return the error, 0 to 1. Raises DataError when nothing counted."""
        items, certainty, right = self._sums
        if not float(items.sum()):
            raise DataError("there is nothing to evaluate", found="no label in any batch", wanted="at least one")
        return float((certainty - right).abs().sum() / items.sum())
