"""How alike two texts truly are: the n-grams both have as a share of those either has (Jaccard).

For pairs that a quicker method proposes, and for all pairs of a small sample. Each n-gram counts once in a text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deepseek.data.cooker.dedup.bucket_tables import ranges
from deepseek.data.cooker.dedup.ngrams import HASH_BITS, Features, NGrams, join_features
from deepseek.data.cooker.dedup.parallel import map_blocks, map_threads

_PAIRS_AT_ONCE = 2048


def jaccard_pairs(
    texts: Sequence[str],
    one: NDArray[np.int64],
    other: NDArray[np.int64],
    ngrams: NGrams,
    workers: int | None = None,
    features: Features | None = None,
) -> NDArray[np.float64]:
    """Return the Jaccard similarity of each pair `texts[one[i]]`, `texts[other[i]]`, float64 (pairs,).

    0 where neither text has a feature. Only texts that occur in a pair are read; none with the `features` of all.
    """
    if features is None:
        used = np.unique(np.concatenate([one, other]))
        features = join_features(map_blocks(ngrams.features, [texts[place] for place in used], workers))
        one, other = np.searchsorted(used, one), np.searchsorted(used, other)
    known = features
    starts = range(0, len(one), _PAIRS_AT_ONCE)
    found = map_threads(
        lambda start: _similarities(known, one[start : start + _PAIRS_AT_ONCE], other[start : start + _PAIRS_AT_ONCE]),
        iter(starts),
        workers,
    )
    return np.concatenate(found) if found else np.zeros(0)


def _similarities(features: Features, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the similarities of pairs of rows: both rows' features sorted together, equal neighbours are shared."""
    lengths = np.diff(features.offsets)
    pairs = np.arange(len(left), dtype=np.uint64) << HASH_BITS
    keys = [
        features.hashes[ranges(features.offsets[rows], lengths[rows])] >> (np.uint64(64) - HASH_BITS)
        | np.repeat(pairs, lengths[rows])
        for rows in (left, right)
    ]
    merged = np.sort(np.concatenate(keys))
    shared = merged[1:][merged[1:] == merged[:-1]]
    common = np.bincount((shared >> HASH_BITS).astype(np.int64), minlength=len(left))
    either = lengths[left] + lengths[right] - common
    similarities: NDArray[np.float64] = common / np.maximum(either, 1)
    return similarities


def jaccard_matrix(texts: Sequence[str], ngrams: NGrams) -> NDArray[np.float64]:
    """Return the similarity of every two of `texts`, float64 (texts, texts): exact, for a sample of a thousand or two.

    Memory is 16 bytes times the square of the number of texts, and 16 MiB.
    """
    features = ngrams.features(texts)
    lengths = np.diff(features.offsets)
    _, columns, counts = np.unique(features.hashes, return_inverse=True, return_counts=True)
    rows = np.repeat(np.arange(len(texts)), lengths)
    shared = counts[columns] > 1
    names, columns = np.unique(columns[shared], return_inverse=True)
    order = np.argsort(columns, kind="stable")
    rows, columns = rows[shared][order], columns[order]
    common = np.zeros((len(texts), len(texts)), dtype=np.float32)
    width = max(1, (1 << 22) // max(1, len(texts)))
    for start in range(0, len(names), width):
        low, high = np.searchsorted(columns, (start, start + width))
        present = np.zeros((len(texts), width), dtype=np.float32)
        present[rows[low:high], columns[low:high] - start] = 1
        common += present @ present.T
    either = lengths[:, None] + lengths[None, :] - common
    similarities: NDArray[np.float64] = common / np.maximum(either, 1)
    np.fill_diagonal(similarities, lengths > 0)  # what a text shares with itself alone was left out
    return similarities
