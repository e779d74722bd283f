"""From a histogram to the range that int8 covers, and from a range to scale and zero point.

Sources: percentile and KL (entropy) calibration: Migacz 2017, "8-bit Inference with TensorRT"; squared error: Banner et
al. 2019, "Post training 4-bit quantization of convolutional networks for rapid-deployment", arXiv:1810.05723.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deepseek.quantization.config import Calibration
from deepseek.quantization.observers import Histogram

_KEPT = 0.9999  # the share of values inside a percentile range
_FRACTIONS = torch.logspace(-8, 0, 161, base=2.0, dtype=torch.float64)  # ranges tried, as parts of the full one
_EMPTY = 1e-6  # probability given to a bin that quantization emptied, so that the divergence stays finite


def find_range(histogram: Histogram, calibration: Calibration, symmetric: bool) -> tuple[float, float]:
    """Return the (low, high) that int8 should cover; low <= 0 <= high, and low == -high if symmetric."""
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    if calibration == "minmax" or low == high:
        return low, high
    if calibration == "percentile":
        return _percentile(histogram, low, high, symmetric)
    cost = _squared_error if calibration == "mse" else _divergence
    return _search(histogram, (low, high), symmetric, cost)


def scale_and_zero_point(low: float, high: float, symmetric: bool) -> tuple[float, int]:
    """Return (scale, zero point) with which integers -128..127 (-127..127 if symmetric) cover [low, high]."""
    if symmetric:
        return max(-low, high, 1e-30) / 127, 0
    scale = max(high - low, 1e-30) / 255
    return scale, round(-128 - low / scale)


def _percentile(histogram: Histogram, low: float, high: float, symmetric: bool) -> tuple[float, float]:
    counts, centers = histogram.counts, histogram.centers()
    if symmetric:
        half = len(counts) // 2
        share = (counts[half:] + counts[:half].flip(0)).cumsum(0) / counts.sum()
        reach = min(high, float(centers[half:][_first(share, _KEPT)]))
        return -reach, reach
    share, outside = counts.cumsum(0) / counts.sum(), (1 - _KEPT) / 2
    bottom, top = float(centers[_first(share, outside)]), float(centers[_first(share, 1 - outside)])
    return min(max(low, bottom), 0.0), max(min(high, top), 0.0)


def _first(share: Tensor, wanted: float) -> int:
    return min(int(torch.searchsorted(share, wanted)), len(share) - 1)


def _search(
    histogram: Histogram,
    full: tuple[float, float],
    symmetric: bool,
    cost: Callable[[Tensor, Tensor, float, int, int], float],
) -> tuple[float, float]:
    counts = histogram.counts.clone()
    if cost is _divergence:
        middle = len(counts) // 2  # holds the exact zeros of ReLU or padding; int8 keeps those whatever the range
        counts[middle] = torch.minimum(counts[middle], torch.maximum(counts[middle - 1], counts[middle + 1]))
    used = counts > 0
    counts, centers = counts[used], histogram.centers()[used]
    best = (float("inf"), full)
    for fraction in _FRACTIONS.tolist():
        low, high = full[0] * fraction, full[1] * fraction
        scale, zero_point = scale_and_zero_point(low, high, symmetric)
        best = min(best, (cost(counts, centers, scale, zero_point, -127 if symmetric else -128), (low, high)))
    return best[1]


def _squared_error(counts: Tensor, centers: Tensor, scale: float, zero_point: int, lowest: int) -> float:
    levels = (torch.round(centers / scale) + zero_point).clamp(lowest, 127)
    return float((counts * (centers - (levels - zero_point) * scale).square()).sum())


def _divergence(counts: Tensor, centers: Tensor, scale: float, zero_point: int, lowest: int) -> float:
    """Return KL(P||Q): P has what is cut off in its outermost bins, Q spreads each level evenly over its bins."""
    exact = torch.round(centers / scale) + zero_point
    inside = (exact >= lowest) & (exact <= 127)
    if not bool(inside.any()):
        return float("inf")
    levels = (exact[inside] - lowest).long()
    kept = counts[inside]
    level_mass = torch.bincount(levels, weights=kept)
    q = level_mass[levels] / torch.bincount(levels)[levels]
    p = kept.clone()
    p[0] += counts[exact < lowest].sum()
    p[-1] += counts[exact > 127].sum()
    p, q = p / p.sum(), (q / q.sum()).clamp_min(_EMPTY)
    return float((p * (p / q).log()).sum())
