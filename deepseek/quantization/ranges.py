"""From a histogram to the range that int8 covers, and from a range to scale and zero point.

Sources: percentile and KL (entropy) calibration: Migacz 2017, "8-bit Inference with TensorRT"; squared error: Banner et
al. 2019, "Post training 4-bit quantization of convolutional networks for rapid-deployment", arXiv:1810.05723.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.quantization.config import Calibration
from deepseek.quantization.observers import Histogram

_KEPT = 0.9999  # the share of values inside a percentile range; more, in steps of ten, where those outside matter
_STEPS = 4
_TOLERATED = 2.0  # how many times the squared error of the full range a percentile may cost
_FRACTIONS = torch.logspace(-8, 0, 161, base=2.0, dtype=torch.float64)  # ranges tried, as parts of the full one
_EMPTY = 1e-6  # probability given to a bin that quantization emptied, so that the divergence stays finite


def find_range(histogram: Histogram, calibration: Calibration, symmetric: bool) -> tuple[float, float]:
    """Return the (low, high) that int8 should cover; low <= 0 <= high, and low == -high if symmetric.

    `best` needs the layer itself and is not for this function; of a histogram alone, `mse` is the nearest to it.
    """
    low, high = _around_zero(histogram.low, histogram.high, symmetric)
    if calibration == "minmax" or low == high:
        return low, high
    if calibration == "moving_average":
        return _around_zero(histogram.average_low, histogram.average_high, symmetric)
    if calibration == "percentile":
        return _percentile(histogram, (low, high), symmetric)
    return _search(histogram, (low, high), symmetric, _divergence if calibration == "kl" else _squared_error)


def _around_zero(low: float, high: float, symmetric: bool) -> tuple[float, float]:
    low, high = min(low, 0.0), max(high, 0.0)
    return (-max(-low, high), max(-low, high)) if symmetric else (low, high)


def scale_and_zero_point(low: float, high: float, symmetric: bool) -> tuple[float, int]:
    """Return (scale, zero point) with which integers -128..127 (-127..127 if symmetric) cover [low, high]."""
    if symmetric:
        return max(-low, high, 1e-30) / 127, 0
    scale = max(high - low, 1e-30) / 255
    return scale, round(-128 - low / scale)


def _percentile(histogram: Histogram, full: tuple[float, float], symmetric: bool) -> tuple[float, float]:
    """Return the range of `_KEPT` of the values; a wider one where those outside weigh more than the finer steps win.

    Rare large values carry much of some layers' information (SiLU, attention), and a cut there ruins a model.
    """
    used = histogram.counts > 0
    counts, centers, lowest = histogram.counts[used], histogram.centers()[used], -127 if symmetric else -128

    def error(ends: tuple[float, float]) -> float:
        scale, zero_point = torch.tensor(scale_and_zero_point(*ends, symmetric), dtype=torch.float64).reshape(2, 1, 1)
        return float(_squared_error(counts, centers, scale, zero_point, lowest))

    limit = _TOLERATED * error(full)
    for step in range(_STEPS):
        found = _inner(histogram, full, symmetric, (1 - _KEPT) / 10**step)
        if error(found) <= limit:
            return found
    return full


def _inner(histogram: Histogram, full: tuple[float, float], symmetric: bool, left_out: float) -> tuple[float, float]:
    counts, centers = histogram.counts, histogram.centers()
    if symmetric:
        half = len(counts) // 2
        share = (counts[half:] + counts[:half].flip(0)).cumsum(0) / counts.sum()
        reach = min(full[1], float(centers[half:][_first(share, 1 - left_out)]))
        return -reach, reach
    share = counts.cumsum(0) / counts.sum()
    bottom, top = float(centers[_first(share, left_out / 2)]), float(centers[_first(share, 1 - left_out / 2)])
    return min(max(full[0], bottom), 0.0), max(min(full[1], top), 0.0)


def _first(share: Tensor, wanted: float) -> int:
    return min(int(torch.searchsorted(share, wanted)), len(share) - 1)


def _search(
    histogram: Histogram,
    full: tuple[float, float],
    symmetric: bool,
    cost: Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor],
) -> tuple[float, float]:
    """Return the part of the full range that costs least; of equal ones the widest."""
    counts = histogram.counts.clone()
    if cost is _divergence:
        middle = len(counts) // 2  # holds the exact zeros of ReLU or padding; int8 keeps those whatever the range
        counts[middle] = torch.minimum(counts[middle], torch.maximum(counts[middle - 1], counts[middle + 1]))
    used = counts > 0
    counts, centers = counts[used], histogram.centers()[used]
    tried = [(full[0] * fraction, full[1] * fraction) for fraction in _FRACTIONS.flip(0).tolist()]
    steps = [scale_and_zero_point(low, high, symmetric) for low, high in tried]
    scales, zero_points = torch.tensor(steps, dtype=torch.float64).unbind(1)
    lowest = -127 if symmetric else -128
    costs = cost(counts, centers, scales.unsqueeze(1), zero_points.unsqueeze(1), lowest)
    return tried[int(costs.argmin())]


def _squared_error(counts: Tensor, centers: Tensor, scales: Tensor, zero_points: Tensor, lowest: int) -> Tensor:
    """Return the error of each range `(ranges,)`; `scales` and `zero_points` are `(ranges, 1)`."""
    edges = _edges(centers, scales, zero_points, lowest)
    edges[:, 0], edges[:, -1] = 0, len(centers)  # the outermost integers stand for what is cut off, too
    values = (torch.arange(lowest, 128) - zero_points) * scales
    total, first, second = (_between(counts * centers**power, edges) for power in (0, 1, 2))
    return (second - 2 * values * first + values.square() * total).sum(dim=1)


def _divergence(counts: Tensor, centers: Tensor, scales: Tensor, zero_points: Tensor, lowest: int) -> Tensor:
    """Return KL(P||Q) of each range; in P the outermost bins hold what is cut off, Q is even within an integer's bins.

    Sums over the bins of an integer are differences of running sums, so a range costs as much as it has integers.
    """
    edges = _edges(centers, scales, zero_points, lowest)
    start, end, whole = edges[:, 0], edges[:, -1], counts.sum()
    inside = end > start
    first, last = start.clamp_max(len(counts) - 1), (end - 1).clamp_min(0)
    running = _running(counts)
    below, above = running[start], whole - running[end]
    mass, bins = _between(counts, edges), edges.diff(dim=1)
    q = (mass / bins.clamp_min(1) / mass.sum(dim=1, keepdim=True).clamp_min(1e-300)).clamp_min(_EMPTY)
    of_p = mass.scatter_add(1, (edges[:, 1:] > first[:, None]).long().argmax(1, keepdim=True), below[:, None])
    of_p = of_p.scatter_add(1, (edges[:, 1:] > last[:, None]).long().argmax(1, keepdim=True), above[:, None])
    entropy = _running(torch.xlogy(counts, counts))
    outer = _grown(counts[first], below) + _grown(counts[last], above)
    outer = torch.where(first == last, _grown(counts[first], below + above), outer)
    divergence = (entropy[end] - entropy[start] + outer - (of_p * q.log()).sum(dim=1)) / whole - whole.log()
    return torch.where(inside, divergence, math.inf)


def _edges(centers: Tensor, scales: Tensor, zero_points: Tensor, lowest: int) -> Tensor:
    """Return where the bins of each integer begin and end, `(ranges, integers + 1)`."""
    borders = (torch.arange(lowest, 129) - 0.5 - zero_points) * scales
    return torch.searchsorted(centers, borders)


def _running(values: Tensor) -> Tensor:
    return F.pad(values.cumsum(0), (1, 0))


def _between(values: Tensor, edges: Tensor) -> Tensor:
    return _running(values)[edges].diff(dim=1)


def _grown(counts: Tensor, more: Tensor) -> Tensor:
    """Return by how much x log x grows when `more` is added."""
    return torch.xlogy(counts + more, counts + more) - torch.xlogy(counts, counts)
