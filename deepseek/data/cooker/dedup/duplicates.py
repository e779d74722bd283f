"""Which of many texts are copies or near-copies of others, all texts at hand: pairs, clusters and who stays.

SimHash or MinHash proposes pairs, the true similarity of their n-grams decides, and a chain of pairs makes a cluster.
Not here: texts that come block by block (`state`), and how well it went on a corpus (`quality`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from deepseek.data.cooker.dedup.clusters import Clusters
from deepseek.data.cooker.dedup.exact import exact_hashes
from deepseek.data.cooker.dedup.hamming import Wider, hamming_pairs
from deepseek.data.cooker.dedup.jaccard import jaccard_pairs
from deepseek.data.cooker.dedup.minhash import choose_bands, estimated_jaccard, minhash, minhash_pairs
from deepseek.data.cooker.dedup.ngrams import Features, NGrams
from deepseek.data.cooker.dedup.simhash import simhash, simhash_twice
from deepseek.errors import ConfigError

Method = Literal["simhash", "minhash", "exact"]
Keep = Literal["first", "longest"]
Places = NDArray[np.int64]

DISTANCE = 7
THRESHOLD = 0.6
FIRST_SLACK = 8  # bits further apart that are worth a look at the second code
BOTH_SLACK = 16  # bits that both codes may be further apart together
_PAIRS_AT_ONCE = 1 << 15
_ESTIMATE_SLACK = 0.15  # over three standard deviations of the estimate


@dataclass(frozen=True)
class Duplicates:
    """What `find_duplicates` found among n texts."""

    keep: NDArray[np.bool_]
    """(n,): one text of each cluster."""
    clusters: Places
    """(n,): the first member of each text's cluster; a text without duplicates is its own."""
    pairs: Places
    """(pairs, 2): duplicates, the earlier first: enough to join the clusters, not every pair of them."""
    similarity: NDArray[np.float64]
    """(pairs,): share of n-grams in common; 1 for the exact method; unverified, estimated from the codes."""

    @property
    def removed(self) -> int:
        """How many texts go."""
        return int(len(self.keep) - np.count_nonzero(self.keep))


def find_duplicates(
    texts: Iterable[str],
    method: Method = "simhash",
    threshold: float = THRESHOLD,
    *,
    distance: int = DISTANCE,
    ngrams: NGrams | None = None,
    verify: bool = True,
    keep: Keep = "first",
    workers: int | None = None,
) -> Duplicates:
    """Return the duplicates among `texts` (an iterator is held in memory).

    Two texts are duplicates when at least `threshold` of the n-grams of either are in both (Jaccard) and the method
    proposes them: SimHash where their codes differ in at most `distance` of 64 bits, MinHash nearly always. "exact"
    wants equal text but for case, width and white space, and heeds neither. Without `verify` SimHash takes every pair
    within `distance`, and MinHash the estimated similarity. Of a cluster the first text stays, or the longest.

    The result depends on the texts alone, not on `workers`. A text without a letter or digit has no near-duplicates.
    Raises ConfigError for a wrong argument and DataError where there are too many pairs to list.
    """
    rows = texts if isinstance(texts, Sequence) else list(texts)
    grams = NGrams() if ngrams is None else ngrams
    _check(method, threshold, keep)
    clusters = Clusters(len(rows))
    if method == "exact":
        earlier, later = _exact_pairs(rows)
        similarity = np.ones(len(earlier))
        clusters.join(earlier, later)
    else:
        features: Features | None = None
        if method == "simhash":
            earlier, later, similarity, features = _simhash_candidates(rows, distance, grams, verify, workers)
        else:
            earlier, later, similarity = _minhash_candidates(rows, threshold, grams, workers)
            good = similarity >= (threshold - _ESTIMATE_SLACK if verify else threshold)
            earlier, later, similarity = earlier[good], later[good], similarity[good]
        if verify:

            def similarities(one: Places, other: Places) -> NDArray[np.float64]:
                return jaccard_pairs(rows, one, other, grams, workers, features)

            earlier, later, similarity = _verified(earlier, later, threshold, clusters, similarities)
        else:
            clusters.join(earlier, later)
    ids = clusters.ids
    return Duplicates(_kept(rows, ids, keep), ids, np.stack([earlier, later], axis=1), similarity)


def _check(method: str, threshold: float, keep: str) -> None:
    for name, value, known in (("method", method, get_args(Method)), ("keep", keep, get_args(Keep))):
        if value not in known:
            raise ConfigError(f"unknown {name}", found=repr(value), wanted=", ".join(known))
    if not 0 < threshold <= 1:
        raise ConfigError("the threshold is out of range", found=threshold, wanted="above 0, at most 1")


def _exact_pairs(rows: Sequence[str]) -> tuple[Places, Places]:
    firsts: dict[bytes, int] = {}
    first = np.array([firsts.setdefault(digest, place) for place, digest in enumerate(exact_hashes(rows))], np.int64)
    later = np.flatnonzero(first != np.arange(len(rows)))
    return first[later], later


def _simhash_candidates(
    rows: Sequence[str], distance: int, grams: NGrams, verify: bool, workers: int | None
) -> tuple[Places, Places, NDArray[np.float64], Features | None]:
    """Return the pairs that SimHash proposes. With `verify` two independent codes of each text are searched.

    Each is complete for its distance, and a pair that both searches miss by a few bits is rare.
    """
    if not verify:
        codes = simhash(rows, grams, workers)
        some = np.flatnonzero(codes)  # a text without features has the code 0, one with features hardly ever
        earlier, later, apart = hamming_pairs(codes[some], distance, workers)
        return some[earlier], some[later], np.cos(np.pi * apart / 64), None
    one, other, features = simhash_twice(rows, grams, workers)
    some = np.flatnonzero(one)
    one, other = one[some], other[some]
    reach, total = distance + FIRST_SLACK, 2 * distance + BOTH_SLACK
    found = [hamming_pairs(a, distance, workers, Wider(b, reach, total)) for a, b in ((one, other), (other, one))]
    pairs = np.unique(np.concatenate([later * len(some) + earlier for earlier, later, _ in found]))
    earlier, later = pairs % max(1, len(some)), pairs // max(1, len(some))
    apart = np.bitwise_count(one[earlier] ^ one[later])
    return some[earlier], some[later], np.cos(np.pi * apart / 64), features


def _minhash_candidates(
    rows: Sequence[str], threshold: float, grams: NGrams, workers: int | None
) -> tuple[Places, Places, NDArray[np.float64]]:
    signature = minhash(rows, grams, workers)
    earlier, later = minhash_pairs(signature, choose_bands(threshold))
    parts = [
        estimated_jaccard(signature[earlier[low : low + 4096]], signature[later[low : low + 4096]])
        for low in range(0, len(earlier), 4096)
    ]
    return earlier, later, np.concatenate(parts) if parts else np.zeros(0)


def _verified(
    earlier: Places,
    later: Places,
    threshold: float,
    clusters: Clusters,
    similarities: Callable[[Places, Places], NDArray[np.float64]],
) -> tuple[Places, Places, NDArray[np.float64]]:
    """Join the pairs that are truly alike and return them; a pair whose two are joined already is passed over."""
    found = [(earlier[:0], later[:0], np.zeros(0))]
    for low in range(0, len(earlier), _PAIRS_AT_ONCE):
        one, other = earlier[low : low + _PAIRS_AT_ONCE], later[low : low + _PAIRS_AT_ONCE]
        apart = clusters.apart(one, other)
        one, other = one[apart], other[apart]
        similarity = similarities(one, other)
        good = similarity >= threshold
        clusters.join(one[good], other[good])
        found.append((one[good], other[good], similarity[good]))
    first, second, third = zip(*found, strict=True)
    return np.concatenate(first), np.concatenate(second), np.concatenate(third)


def _kept(rows: Sequence[str], ids: Places, keep: Keep) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = ids == np.arange(len(ids))
    if keep == "longest" and len(rows):
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        order = np.lexsort((np.arange(len(rows)), -lengths, ids))  # by cluster, then longest, then first
        mask = np.zeros(len(rows), dtype=np.bool_)
        mask[order[np.append(True, ids[order][1:] != ids[order][:-1])]] = True
    return mask
