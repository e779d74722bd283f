"""An index of SimHash codes that grows block by block and finds all stored codes at most k bits from new ones.

A code costs 8 bytes and 4 for each table: 36 tables, 152 bytes, at a distance of 7. Not here: one search over codes
that are all there (`hamming`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepseek.data.cooker.dedup.bucket_tables import BucketTables
from deepseek.data.cooker.dedup.growing import Growing
from deepseek.data.cooker.dedup.hamming import Plan, plan_search

_PLANNED_FOR = 1_000_000
_MOST_TABLES = 130


class SimHashIndex:
    """Codes numbered from 0 in the order they came; `search` is complete for distances up to `distance`.

    Raises ConfigError for a distance that is not 0 to 16.
    """

    def __init__(self, distance: int = 7) -> None:
        self.plan = _plan(distance)
        self._codes = Growing(np.zeros(0, dtype=np.uint64))
        self._tables = BucketTables(self._keys_of)

    def __len__(self) -> int:
        return len(self._codes)

    @property
    def codes(self) -> NDArray[np.uint64]:
        """All codes, uint64 (codes,), in the order they came."""
        return self._codes.rows

    def add(self, codes: NDArray[np.uint64]) -> None:
        """Store `codes`, uint64 (n,). Large blocks are quicker than small ones."""
        first = len(self)
        self._codes.append(codes)
        self._tables.extend(first, len(self))

    def search(
        self, codes: NDArray[np.uint64], reach: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
        """Return (stored, queried, distance) of all pairs of stored codes and `codes` (n,), sorted by both.

        With `reach`, pairs up to that far apart come too where `plan.share_bucket`.
        """
        stored_codes = self.codes
        found = [np.zeros(0, dtype=np.int64)]
        for stored, queried in self._tables.candidates(self._keys(codes)):
            near = np.flatnonzero(self.near(stored_codes[stored] ^ codes[queried], reach))
            found.append(stored[near] * len(codes) + queried[near])
        pairs = np.unique(np.concatenate(found))
        stored, queried = pairs // max(1, len(codes)), pairs % max(1, len(codes))
        return stored, queried, np.bitwise_count(stored_codes[stored] ^ codes[queried])

    def near(self, differences: NDArray[np.uint64], reach: int | None = None) -> NDArray[np.bool_]:
        """Return which pairs `search` finds, by the exclusive or of their codes."""
        apart = np.bitwise_count(differences)
        found: NDArray[np.bool_] = apart <= self.plan.distance
        if reach is not None:
            further = np.flatnonzero(~found & (apart <= reach))
            found[further] = self.plan.share_bucket(differences[further])
        return found

    def _keys_of(self, first: int, last: int) -> NDArray[np.uint16]:
        return self._keys(self.codes[first:last])

    def _keys(self, codes: NDArray[np.uint64]) -> NDArray[np.uint16]:
        return np.stack([self.plan.keys(codes, table) for table in self.plan.tables])


def _plan(distance: int) -> Plan:
    """Return the quickest plan for a million codes that keeps within the number of tables."""
    size = _PLANNED_FOR
    plan = plan_search(distance, size)
    while len(plan.tables) > _MOST_TABLES and size > 1:
        size //= 2
        plan = plan_search(distance, size)
    return plan
