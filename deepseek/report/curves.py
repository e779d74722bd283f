"""Curves as plain numbers: smoothing, and fewer points with nothing lost that an eye could see.

Not here: drawing them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_POINTS = 220


@dataclass(frozen=True)
class Curve:
    """Points in order of x; both lists have the same length."""

    x: Sequence[float] = ()
    y: Sequence[float] = ()

    def __bool__(self) -> bool:
        return bool(self.x)


def smooth(curve: Curve) -> Curve:
    """Return an exponential moving average whose span grows with the index up to a 25th of the curve.

    So it follows the steep start closely and is calm afterwards.
    """
    average, smoothed = 0.0, []
    for index, value in enumerate(curve.y):
        span = max(1.0, min(len(curve.x) / 25, index / 3))
        average += 2.0 / (span + 1) * (value - average)
        smoothed.append(average)
    return Curve(curve.x, smoothed)


def envelope(curve: Curve, buckets: int = _POINTS) -> Curve:
    """Return at most `2 * buckets` points that keep each bucket's lowest and highest value (no spike is lost)."""
    size = -(-len(curve.x) // buckets)
    if size <= 2:
        return curve
    kept: list[int] = []
    for start in range(0, len(curve.x), size):
        indices = range(start, min(start + size, len(curve.x)))
        kept += sorted({min(indices, key=curve.y.__getitem__), max(indices, key=curve.y.__getitem__)})
    return Curve([curve.x[i] for i in kept], [curve.y[i] for i in kept])


def thin(curve: Curve, points: int = _POINTS) -> Curve:
    """Return about `points` points, evenly taken, the last one always among them."""
    stride = -(-len(curve.x) // points) if curve else 1
    kept = sorted({*range(0, len(curve.x), stride), len(curve.x) - 1}) if curve else []
    return Curve([curve.x[i] for i in kept], [curve.y[i] for i in kept])
