"""MinHash: a signature of a text whose equal places are, on average, the Jaccard similarity of two texts' n-grams.

Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900. One hash of each feature serves all 128 places: its top bits
say which, and the least of the rest stays there (one permutation, Li et al. 2012, https://arxiv.org/abs/1208.1259). A
place that no feature fell on borrows for the search from one that has a value, the same for all texts (Shrivastava
2017, https://arxiv.org/abs/1703.04664; after 16 tries the next place). Equal bands of several places are candidates;
the similarity is estimated from the places as they were. Not here: candidates in an index that grows (`minhash_index`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepseek.data.cooker.dedup.ngrams import Features, NGrams, mixed
from deepseek.data.cooker.dedup.parallel import map_blocks
from deepseek.errors import ConfigError

PLACES = 128
EMPTY = np.uint32(0xFFFFFFFF)
_PLACE_BITS = np.uint64(7)
_TRIES = 16
_WANTED_RECALL = 0.98
_STEP = np.uint64(0xD6E8FEB86659FD93)


class Bands(NamedTuple):
    """How a signature is cut: two texts are candidates where all `rows` places of any of `count` bands are equal."""

    number: int
    rows: int


def minhash(texts: Sequence[str], ngrams: NGrams | None = None, workers: int | None = None) -> NDArray[np.uint32]:
    """Return the signatures, uint32 (texts, 128); 2**32 - 1 marks an empty place."""
    grams = NGrams() if ngrams is None else ngrams
    found = map_blocks(lambda block: signatures(grams.features(block)), texts, workers)
    return np.concatenate(found) if found else np.zeros((0, PLACES), dtype=np.uint32)


def signatures(features: Features) -> NDArray[np.uint32]:
    """Return the signatures of the texts of `features`, uint32 (texts, 128)."""
    count = len(features.offsets) - 1
    found = np.full(count * PLACES, EMPTY, dtype=np.uint32)
    places = (features.hashes >> (np.uint64(64) - _PLACE_BITS)).astype(np.int64)
    places += np.repeat(np.arange(count) * PLACES, np.diff(features.offsets))
    values = (features.hashes & np.uint64(0x7FFFFFFF)).astype(np.uint32)  # never the mark of an empty place
    np.minimum.at(found, places, values)
    return found.reshape(count, PLACES)


def estimated_jaccard(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Return the estimated similarity of rows of signatures, (..., 128) each; 0 where both are empty.

    Its standard deviation is sqrt(j (1 - j) / 128) at most: 0.035 at 0.8.
    """
    used = (one != EMPTY) | (other != EMPTY)
    equal = (one == other) & used
    found: NDArray[np.float64] = equal.sum(axis=-1) / np.maximum(used.sum(axis=-1), 1)
    return found


def choose_bands(threshold: float) -> Bands:
    """Return the bands that find a pair of similarity `threshold` with probability 0.98, as selective as that allows.

    Raises ConfigError for a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ConfigError("the threshold is out of range", found=threshold, wanted="above 0, at most 1")
    best = Bands(PLACES, 1)
    for rows in range(2, 17):
        count = PLACES // rows
        if 1 - (1 - threshold**rows) ** count >= _WANTED_RECALL:
            best = Bands(count, rows)
    return best


def band_hashes(signature: NDArray[np.uint32], bands: Bands) -> NDArray[np.uint64]:
    """Return a hash of each band of each text, uint64 (bands, texts), empty places filled first."""
    full = _densified(signature)[:, : bands.number * bands.rows].astype(np.uint64).reshape(-1, bands.number, bands.rows)
    found = np.zeros(full.shape[:2], dtype=np.uint64)
    for row in range(bands.rows):
        found *= _STEP
        found += full[:, :, row]
    return mixed(np.ascontiguousarray(found.T))


def _densified(signature: NDArray[np.uint32]) -> NDArray[np.uint32]:
    found = signature.copy()
    rows, places = np.nonzero(signature == EMPTY)
    some = (signature != EMPTY).any(axis=1)[rows]
    rows, places = rows[some], places[some]
    for probe in _probes():
        values = signature[rows, probe[places]]
        found[rows, places] = values
        empty = values == EMPTY
        rows, places = rows[empty], places[empty]
    for _ in range(PLACES):
        if not len(rows):
            break
        values = found[rows, (places + 1) % PLACES]
        found[rows, places] = values
        empty = values == EMPTY
        rows, places = rows[empty], places[empty]
    return found


@functools.cache
def _probes() -> NDArray[np.int64]:
    """Return the place each place borrows from at each try, int64 (tries, 128)."""
    numbers = mixed(np.arange(1, _TRIES * PLACES + 1, dtype=np.uint64))
    return (numbers >> (np.uint64(64) - _PLACE_BITS)).astype(np.int64).reshape(_TRIES, PLACES)


def minhash_pairs(signature: NDArray[np.uint32], bands: Bands) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (earlier, later) of the candidates, sorted: texts that agree in a band.

    In a bucket each text is paired with the first and with the one before it, which joins a cluster without listing
    all its pairs. Texts without features are in no pair.
    """
    some = np.flatnonzero((signature != EMPTY).any(axis=1))
    count = max(1, len(signature))
    found = [np.zeros(0, dtype=np.int64)]
    for keys in band_hashes(signature[some], bands):
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        same = np.flatnonzero(keys[1:] == keys[:-1])
        if len(same):
            starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
            firsts = starts[np.searchsorted(starts, same + 1, side="right") - 1]
            later = some[order[same + 1]]
            found += [some[order[same]] * count + later, some[order[firsts]] * count + later]
    pairs = np.unique(np.concatenate(found))
    return pairs // count, pairs % count
