"""Which measured points count: the Pareto front, the cheapest that passes, the nearest that does not.

Points are plain values: `bytes`, `latency_ms`, `drop` (how much worse the main figure is; below zero: better).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from deepseek.compress.budget import Budget

Point = Mapping[str, Any]

_LEAST_DROP = 0.01  # a gate of nothing at all still has a scale to measure distances by


def loss_of(point: Point) -> float:
    """Return how much worse a point is; infinite where that could not be measured. Better counts as no loss."""
    value = point.get("drop")
    return math.inf if value is None else max(0.0, float(value))


def pareto(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other point beats: as small, as fast and as good, and better in one of the three."""
    values = [(float(p["bytes"]), float(p["latency_ms"]), loss_of(p)) for p in points]
    front = []
    for place, mine in enumerate(values):
        beaten = any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and (other != mine or index < place)
            for index, other in enumerate(values)
            if index != place
        )
        if not beaten and math.isfinite(mine[2]):
            front.append(points[place])
    return front


def cheapest(points: Sequence[Point], budget: Budget, allowed: float) -> Point | None:
    """Return the fastest point within budget and quality, the smaller of two that are as fast; None without any."""
    good = [point for point in points if budget.fits(point) and loss_of(point) <= allowed + 1e-12]
    return min(good, key=lambda point: (point["latency_ms"], point["bytes"], loss_of(point)), default=None)


def nearest(points: Sequence[Point], budget: Budget, allowed: float) -> Point | None:
    """Return the point that is least far past its worst limit; quality is counted in multiples of what is allowed."""

    def distance(point: Point) -> float:
        over = max(0.0, loss_of(point) - allowed) / max(allowed, _LEAST_DROP)
        return max(budget.excess(point), 1.0 + over)

    return min(points, key=distance, default=None)
