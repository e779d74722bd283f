"""Sketches: MinHash signatures cut to a byte a place, small enough to keep one of every text of a stream.

b-bit minwise hashing (Li and König 2010, https://arxiv.org/abs/0910.3349), b = 8: unequal places agree by chance once
in 255. Not here: the signatures themselves (`minhash`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepseek.data.cooker.dedup.minhash import EMPTY, signatures
from deepseek.data.cooker.dedup.ngrams import Features

_AT_ONCE = 8192


def sketches_of(features: Features) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """Return signatures, uint32 (texts, 128), and sketches, uint8 (texts, 128), 0 for an empty place."""
    signature = signatures(features)
    sketches = (signature % np.uint32(255)).astype(np.uint8)
    sketches += np.uint8(1)
    sketches[signature == EMPTY] = 0
    return signature, sketches


def alike(
    sketches: NDArray[np.uint8],
    rows: NDArray[np.int64],
    others: NDArray[np.uint8],
    other_rows: NDArray[np.int64],
    threshold: float,
) -> NDArray[np.bool_]:
    """Return which pairs `sketches[rows[i]]`, `others[other_rows[i]]` have an estimated Jaccard of `threshold`."""
    found = np.zeros(len(rows), dtype=np.bool_)
    for low in range(0, len(rows), _AT_ONCE):
        one, other = sketches[rows[low : low + _AT_ONCE]], others[other_rows[low : low + _AT_ONCE]]
        used = np.count_nonzero(one | other, axis=1)
        equal = np.count_nonzero((one == other) & (one != 0), axis=1)
        found[low : low + _AT_ONCE] = equal >= np.maximum(threshold * used, 1)
    return found
