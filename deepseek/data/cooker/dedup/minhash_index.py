"""An index of MinHash signatures that grows block by block and proposes stored texts that share a band with new ones.

A text costs 6 bytes a band: 192 bytes at a threshold of 0.6. Not here: the similarity of what is proposed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepseek.data.cooker.dedup.bucket_tables import BucketTables
from deepseek.data.cooker.dedup.growing import Growing
from deepseek.data.cooker.dedup.minhash import Bands, band_hashes


class MinHashIndex:
    """Band keys, 16 bits each, of texts numbered from 0 in the order they came."""

    def __init__(self, bands: Bands, keys: NDArray[np.uint16] | None = None) -> None:
        self.bands = bands
        self._keys = Growing(np.zeros((0, bands.number), dtype=np.uint16))
        self._tables = BucketTables(lambda first, last: np.ascontiguousarray(self._keys.rows[first:last].T))
        if keys is not None:
            self.add(keys)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def keys(self) -> NDArray[np.uint16]:
        """All keys, uint16 (texts, bands), in the order they came."""
        return self._keys.rows

    def keys_of(self, signature: NDArray[np.uint32]) -> NDArray[np.uint16]:
        """Return the keys of signatures (n, 128), uint16 (n, bands)."""
        return np.ascontiguousarray((band_hashes(signature, self.bands) >> np.uint64(48)).astype(np.uint16).T)

    def add(self, keys: NDArray[np.uint16]) -> None:
        """Store texts by their keys (n, bands)."""
        first = len(self)
        self._keys.append(keys)
        self._tables.extend(first, len(self))

    def search(self, keys: NDArray[np.uint16]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (stored, queried) of all pairs that share a key, sorted."""
        count = max(1, len(keys))
        found = [np.zeros(0, dtype=np.int64)]
        found += [stored * count + queried for stored, queried in self._tables.candidates(keys.T)]
        pairs = np.unique(np.concatenate(found))
        return pairs // count, pairs % count
