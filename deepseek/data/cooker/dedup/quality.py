"""How well near-duplicates are found in a corpus of one's own: copies are planted in a sample of it and looked for.

What is planted is known, so precision, recall and what is left over can be counted, at the chosen threshold and at its
neighbours. Not here: the search itself (`duplicates`), and the edits (`edits`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepseek.data.cooker.dedup.duplicates import DISTANCE, THRESHOLD, Method, find_duplicates
from deepseek.data.cooker.dedup.edits import EDITS
from deepseek.data.cooker.dedup.exact import exact_hashes
from deepseek.data.cooker.dedup.jaccard import jaccard_matrix
from deepseek.data.cooker.dedup.ngrams import NGrams
from deepseek.errors import ConfigError, DataError

RATES = (0.01, 0.03, 0.05, 0.1)
_NEIGHBOURS = (-0.2, -0.1, 0.0, 0.1, 0.2)
_FEWEST = 20


@dataclass(frozen=True)
class QualityRow:
    """What one threshold finds."""

    threshold: float
    chosen: bool
    precision: float
    """Share of the removed texts that were planted."""
    recall: float
    """Share of the planted texts that were removed."""
    f1: float
    left: float
    """Planted texts still there, as a share of all that stay."""


@dataclass(frozen=True)
class QualityReport:
    """The result of `measure_quality`."""

    texts: int
    planted: int
    rows: tuple[QualityRow, ...]
    """By threshold, ascending."""
    recall_by_edit: dict[str, float]
    """At the chosen threshold, for each kind of edit."""
    recall_by_rate: dict[float, float]
    """At the chosen threshold, for each rate."""
    duplicates_left: float
    """Share of the sample's own texts, after the search, that are at least `threshold` alike to an earlier one: every
    two were compared, nothing planted. What remains in a sample is a lower bound for the corpus."""


@dataclass(frozen=True)
class Planted:
    """Texts with copies among them, in random order."""

    texts: list[str]
    sources: NDArray[np.int64]
    """(texts,): the place of the text that it is a copy of, or its own."""
    edits: list[str]
    """Of each text; "" for those that are not copies."""
    rates: NDArray[np.float64]


def plant(texts: Sequence[str], share: float = 0.1, rates: Sequence[float] = RATES, seed: int = 0) -> Planted:
    """Return `texts` with edited copies of `share` of them, each kind of edit at each rate in turn.

    Raises ConfigError for a share outside (0, 1] or a rate outside (0, 1).
    """
    if not 0 < share <= 1:
        raise ConfigError("the share of copies is out of range", found=share, wanted="above 0, at most 1")
    if not rates or not all(0 < rate < 1 for rate in rates):
        raise ConfigError("the edit rates are out of range", found=list(rates), wanted="at least one, above 0, below 1")
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(texts), max(1, round(share * len(texts))), replace=False)
    rows, names, used = list(texts), [""] * len(texts), [0.0] * len(texts)
    kinds = list(EDITS.items())
    for number, source in enumerate(chosen):
        name, edit = kinds[number % len(kinds)]
        rate = rates[number // len(kinds) % len(rates)]
        rows.append(edit(texts[source], rate, rng))
        names.append(name)
        used.append(rate)
    order = rng.permutation(len(rows))
    place_of = np.argsort(order)
    sources = place_of[np.concatenate([np.arange(len(texts)), chosen])[order]]
    return Planted([rows[i] for i in order], sources, [names[i] for i in order], np.array(used)[order])


def measure_quality(
    texts: Sequence[str],
    method: Method = "simhash",
    threshold: float = THRESHOLD,
    *,
    distance: int = DISTANCE,
    ngrams: NGrams | None = None,
    sample: int = 2000,
    share: float = 0.1,
    rates: Sequence[float] = RATES,
    seed: int = 0,
    workers: int | None = None,
) -> QualityReport:
    """Return how well planted copies are found in `sample` of `texts`, their own duplicates removed first.

    The settings are those of `find_duplicates`. Raises ConfigError for a wrong one, and DataError where fewer than 20
    texts differ.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(texts))[:sample]
    own = [texts[place] for place in np.sort(drawn)]
    grams = NGrams() if ngrams is None else ngrams
    left, unlike = _own_duplicates(own, method, threshold, distance, grams, workers)
    if len(unlike) < _FEWEST:
        raise DataError("too few different texts to measure on", found=len(unlike), wanted=f"at least {_FEWEST}")
    planted = plant(unlike, share, rates, seed)
    rows, found = [], np.zeros(0, dtype=np.bool_)
    for step in _NEIGHBOURS:
        value = round(threshold + step, 6)
        if not 0 < value <= 1:
            continue
        result = find_duplicates(planted.texts, method, value, distance=distance, ngrams=grams, workers=workers)
        row, hit = _row(planted, result.clusters, value, step == 0.0)
        rows.append(row)
        found = hit if step == 0.0 else found
    copies = np.array(planted.edits) != ""
    return QualityReport(
        texts=len(unlike),
        planted=int(copies.sum()),
        rows=tuple(rows),
        recall_by_edit={
            name: float(found[np.array(planted.edits) == name].mean()) for name in EDITS if name in planted.edits
        },
        recall_by_rate={
            float(rate): float(found[copies & (planted.rates == rate)].mean())
            for rate in sorted(set(planted.rates[copies].tolist()))
        },
        duplicates_left=left,
    )


def _own_duplicates(
    own: list[str], method: Method, threshold: float, distance: int, grams: NGrams, workers: int | None
) -> tuple[float, list[str]]:
    """Return the share of duplicates that the method leaves in `own`, and the texts that are truly unlike."""
    result = find_duplicates(own, method, threshold, distance=distance, ngrams=grams, workers=workers)
    kept = [own[place] for place in np.flatnonzero(result.keep)]
    similar = np.tril(jaccard_matrix(kept, grams), -1).max(axis=1, initial=0.0)
    digests = exact_hashes(kept)
    seen: set[bytes] = set()
    unlike = []
    for text, digest, value in zip(kept, digests, similar, strict=True):
        if text.strip() and digest not in seen and value < threshold:
            unlike.append(text)
        seen.add(digest)
    return float((similar >= threshold).mean()) if kept else 0.0, unlike


def _row(
    planted: Planted, clusters: NDArray[np.int64], threshold: float, chosen: bool
) -> tuple[QualityRow, NDArray[np.bool_]]:
    """Return the figures of one search, and which texts were found to be one with their source."""
    copies = planted.sources != np.arange(len(clusters))
    found = copies & (clusters == clusters[planted.sources])
    removed = len(clusters) - len(np.unique(clusters))
    hits = int(found.sum())
    precision = min(1.0, hits / removed) if removed else 1.0
    recall = hits / max(1, int(copies.sum()))
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    left = (int(copies.sum()) - hits) / max(1, len(clusters) - removed)
    return QualityRow(threshold, chosen, precision, recall, f1, left), found
