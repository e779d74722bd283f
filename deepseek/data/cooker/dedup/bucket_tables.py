"""Hash tables in arrays: which of millions of stored items share a 16-bit key with a new one, in any of several tables.

Items are kept in segments; a segment's tables are the numbers of its items sorted by key, and where each key begins.
Segments of like size become one, so there are few (O'Neil et al. 1996, https://doi.org/10.1007/s002360050048).
An item costs 4 bytes a table. Not here: what keys are made of (`simhash_index`, `minhash_index`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

KEYS = 1 << 16
Keys = Callable[[int, int], NDArray[np.uint16]]
"""The keys uint16 (tables, items) of the stored items from one number to another."""

_CANDIDATES = 1 << 19


class _Segment(NamedTuple):
    first: int
    size: int
    orders: NDArray[np.int32]
    """(tables, items)"""
    starts: NDArray[np.int32]
    """(tables, 2**16 + 1)"""


class BucketTables:
    """The tables of items 0, 1, 2, ..., whose keys `keys_of` gives whenever a segment is built."""

    def __init__(self, keys_of: Keys) -> None:
        self._keys_of = keys_of
        self._segments: list[_Segment] = []

    def extend(self, first: int, last: int) -> None:
        """Take in the items `first` to `last` - 1."""
        while self._segments and self._segments[-1].size <= 2 * (last - first):
            first = self._segments.pop().first
        if last > first:
            self._segments.append(_build(first, self._keys_of(first, last)))

    def candidates(self, keys: NDArray[np.uint16]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield (items, places among `keys` (tables, n)) that share a key, in bounded chunks; a pair may come again."""
        for segment in self._segments:
            for order, starts, row in zip(segment.orders, segment.starts, keys.astype(np.int64), strict=True):
                lows = starts[row].astype(np.int64)
                sizes = starts[row + 1] - lows
                for low, high in _chunks(sizes):
                    part = slice(low, high)
                    items = order[ranges(lows[part], sizes[part])].astype(np.int64) + segment.first
                    yield items, np.repeat(np.arange(low, high), sizes[part])


def ranges(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return `starts[0]`, `starts[0]` + 1, ..., `sizes[0]` numbers in all, then those of the next."""
    ends = np.cumsum(sizes)
    found: NDArray[np.int64] = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - sizes), sizes)
    return found


def _build(first: int, keys: NDArray[np.uint16]) -> _Segment:
    orders = np.empty(keys.shape, dtype=np.int32)
    starts = np.zeros((len(keys), KEYS + 1), dtype=np.int32)
    for place, row in enumerate(keys):
        orders[place] = np.argsort(row, kind="stable")
        np.cumsum(np.bincount(row, minlength=KEYS), out=starts[place, 1:])
    return _Segment(first, keys.shape[1], orders, starts)


def _chunks(sizes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield slices of `sizes` that sum up to about `_CANDIDATES` each; none where all are 0."""
    totals = np.cumsum(sizes)
    low = 0
    while low < len(sizes) and totals[-1] > (totals[low - 1] if low else 0):
        before = totals[low - 1] if low else 0
        high = max(low + 1, int(np.searchsorted(totals, before + _CANDIDATES, side="right")))
        yield low, high
        low = high
