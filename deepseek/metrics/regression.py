"""How far predicted values are off: mean absolute error, root mean squared error, and R2, over batches.

R2 = 1 - squared errors / squared distances of the targets from their mean: 1 is perfect, 0 as good as always saying
the mean. Means and squares are joined batch by batch without loss of digits.
Source: Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance", doi:10.2307/2683386 (joining).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from deepseek.errors import DataError


class RegressionScores(NamedTuple):
    """In the unit of the targets, but for `r2`, which is NaN where all targets are equal."""

    mae: float
    rmse: float
    r2: float

    def report(self) -> dict[str, float]:
        """Return the numbers by name; without `r2` where it has no meaning."""
        values = self._asdict()
        return {name: value for name, value in values.items() if math.isfinite(value) or name != "r2"}


class RegressionErrors:
    """Collects predictions and targets; targets that are NaN do not count. All columns are one set of values."""

    def __init__(self) -> None:
        self._count = 0
        self._absolute = self._squared = self._mean = self._spread = 0.0

    def update(self, found: Tensor, wanted: Tensor) -> None:
        """Add predictions and targets of one shape. Raises DataError where the shapes differ."""
        if found.shape != wanted.shape:
            raise DataError(
                "each target needs a prediction", found=f"{tuple(found.shape)} and {tuple(wanted.shape)}", wanted="one"
            )
        known = ~torch.isnan(wanted)
        targets = wanted[known].detach().cpu().double()
        if not targets.numel():
            return
        errors = found[known].detach().cpu().double() - targets
        self._absolute += float(errors.abs().sum())
        self._squared += float(errors.square().sum())
        count, mean = targets.numel(), float(targets.mean())
        apart, total = mean - self._mean, self._count + count
        self._spread += float((targets - mean).square().sum()) + apart**2 * self._count * count / total
        self._mean += apart * count / total
        self._count = total

    def result(self) -> RegressionScores:
        """Return the scores over all batches. Raises DataError when there was no target."""
        if not self._count:
            raise DataError("there is nothing to evaluate", found="no target in any batch", wanted="at least one")
        r2 = 1 - self._squared / self._spread if self._spread > 0 else math.nan
        return RegressionScores(self._absolute / self._count, math.sqrt(self._squared / self._count), r2)
