"""Pairs of near-duplicates to clusters: texts that a chain of pairs connects are one cluster (union-find).

Whole arrays of pairs are joined at a time: each cluster's number is its smallest member, pulled along the pairs until
nothing changes. Not here: which member stays (`duplicates`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Clusters:
    """`count` items, each at first a cluster of its own."""

    def __init__(self, count: int) -> None:
        self._smallest: NDArray[np.int64] = np.arange(count)

    @property
    def ids(self) -> NDArray[np.int64]:
        """The smallest member of each item's cluster, int64 (items,)."""
        return self._smallest.copy()

    def join(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        """Make one cluster of each pair's two."""
        ids = self._smallest
        while True:
            left, right = ids[one], ids[other]
            open_pairs = left != right
            if not open_pairs.any():
                return
            one, other = one[open_pairs], other[open_pairs]
            low = np.minimum(left, right)[open_pairs]
            np.minimum.at(ids, np.maximum(left, right)[open_pairs], low)
            while True:
                further = ids[ids]
                if np.array_equal(further, ids):
                    break
                ids[:] = further

    def apart(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of the pairs are in two clusters still."""
        found: NDArray[np.bool_] = self._smallest[one] != self._smallest[other]
        return found
