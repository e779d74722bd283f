"""What a GPU did over time: from the kernels' starts and ends, the share of time it was busy, and the gaps between.

Kernels of several streams may overlap; what counts is when none ran. Not here: recording (`benchmarks.gpu.recorder`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

Span = tuple[int, int]
"""Start and end of a kernel or copy, in nanoseconds."""


class Timeline(NamedTuple):
    """The sum of a timeline; times in microseconds."""

    kernels: int
    total_us: float
    busy_share: float
    gaps: int
    """How often no kernel ran between the first and the last one."""
    median_gap_us: float
    p99_gap_us: float
    max_gap_us: float


def merge(spans: Iterable[Span]) -> list[Span]:
    """Return the times when any of the spans ran, in order, without overlaps."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if end < start:
            raise ValueError(f"a span ends at {end}, before its start at {start}")
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def summarise(spans: Iterable[Span]) -> Timeline:
    """Return the sum of a timeline of at least one span; without a gap the gaps are 0."""
    spans = list(spans)
    busy = merge(spans)
    if not busy:
        raise ValueError("the timeline is empty: the profiler saw no kernel")
    total = busy[-1][1] - busy[0][0]
    gaps = sorted(later[0] - earlier[1] for earlier, later in zip(busy, busy[1:], strict=False))
    running = sum(end - start for start, end in busy)
    return Timeline(
        kernels=len(spans),
        total_us=total / 1e3,
        busy_share=running / total if total else 1.0,
        gaps=len(gaps),
        median_gap_us=_at(gaps, 0.5) / 1e3,
        p99_gap_us=_at(gaps, 0.99) / 1e3,
        max_gap_us=_at(gaps, 1.0) / 1e3,
    )


def _at(ordered: list[int], share: float) -> int:
    """Return the value that `share` of the ordered ones do not exceed (nearest rank); 0 where there is none."""
    if not ordered:
        return 0
    rank = -(-len(ordered) * share // 1)
    return ordered[min(len(ordered), max(1, int(rank))) - 1]
