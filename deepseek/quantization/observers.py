"""What a layer's input looked like during calibration: one streaming histogram for each layer.

Memory is constant for each layer, whatever the number of batches. Not here: picking a range (`ranges.py`), running the
model (`calibrate.py`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepseek.errors import QuantizationError

BINS = 4096
_CHUNK = 1 << 20  # torch.histc counts in fp32: exact up to 2**24
_SLOWEST = 0.01  # the share of a new batch in the moving average, once there were enough of them


def check_finite(name: str, low: float, high: float) -> None:
    """Raise QuantizationError if a layer's smallest or largest input is NaN or infinite."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise QuantizationError(
            f"the input of layer '{name}' is not finite during calibration",
            found=f"smallest {low}, largest {high}",
            wanted="finite numbers",
            fix="check the calibration data and the model in floating point first",
        )


class Histogram:
    """Counts of seen values in BINS equal bins over [-limit, limit], with the exact smallest and largest.

    A value beyond the limit doubles it, which merges bins in pairs around zero: no count is lost or moved.
    `average_low` and `average_high` are moving averages of each batch's smallest and largest: the mean of the first
    hundred batches, from then on one hundredth of each new one.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.limit = 0.0
        self.low, self.high = math.inf, -math.inf
        self.average_low, self.average_high = 0.0, 0.0
        self._batches = 0

    def observe(self, x: Tensor) -> None:
        """Count the values of a float tensor of any shape. Raises QuantizationError if one is not finite."""
        values = x.detach().to("cpu", torch.float32).flatten()
        if not values.numel():
            return
        low, high = (float(edge) for edge in values.aminmax())
        check_finite(self.name, low, high)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._batches += 1
        share = max(1 / self._batches, _SLOWEST)
        self.average_low += share * (low - self.average_low)
        self.average_high += share * (high - self.average_high)
        self._reach(max(-low, high))
        for chunk in torch.split(values, _CHUNK):
            self.counts += torch.histc(chunk, BINS, -self.limit, self.limit)

    @property
    def seen(self) -> bool:
        """Whether any value was counted."""
        return self.low <= self.high

    def centers(self) -> Tensor:
        """Return the middle of each bin, fp64 `(BINS,)`."""
        width = 2 * self.limit / BINS
        return (torch.arange(BINS, dtype=torch.float64) + 0.5) * width - self.limit

    def _reach(self, distance: float) -> None:
        if self.limit == 0.0:
            self.limit = max(distance, 1e-30)
        while self.limit < distance:
            merged = torch.zeros_like(self.counts)
            merged[BINS // 4 : -BINS // 4] = self.counts.reshape(-1, 2).sum(dim=1)
            self.counts, self.limit = merged, self.limit * 2
