"""How much of a text repeats itself: lines, paragraphs, and n-grams of words (of twice as many characters in Chinese).

Source: Rae et al. 2021, arXiv:2112.11446, table A1. A repeated line or n-gram counts from its second time on;
characters under several repeated n-grams count once.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepseek.data.cooker.hashing import Hashes, ngram_hashes, text_hashes
from deepseek.data.cooker.script import units, unspaced

TOP = (2, 3, 4)
DUPLICATE = (5, 6, 7, 8, 9, 10)
NAMES = ("lines", "paragraphs", *(f"top {n}-gram" for n in TOP), *(f"{n}-grams" for n in DUPLICATE))
_LONGEST = 20_000


class Repetition(NamedTuple):
    """One measure: the share of characters (of lines, for lines and paragraphs) that is repeated, 0 to 1."""

    name: str
    share: float


def repetition(text: str) -> Iterator[Repetition]:
    """Yield each measure of `NAMES`, in order. n-grams are counted over the first 20,000 words or characters."""
    yield Repetition("lines", _line_share([line.strip() for line in text.split("\n") if line.strip()]))
    yield Repetition("paragraphs", _line_share([part.strip() for part in text.split("\n\n") if part.strip()]))
    hashes, lengths, scale = _hashed(text)
    for n in TOP:
        yield Repetition(f"top {n}-gram", _top_share(hashes, lengths, n * scale))
    repeated = True  # where no 5-gram comes twice, no longer one does
    for n in DUPLICATE:
        share = _duplicate_share(hashes, lengths, n * scale) if repeated else 0.0
        repeated = share > 0
        yield Repetition(f"{n}-grams", share)


def repeated_share(text: str) -> float:
    """Return the measure "5-grams" alone."""
    hashes, lengths, scale = _hashed(text)
    return _duplicate_share(hashes, lengths, DUPLICATE[0] * scale)


@lru_cache(maxsize=4)
def _hashed(text: str) -> tuple[Hashes, NDArray[np.int64], int]:
    """Return the units' hashes, their lengths, and by how much n is scaled (2 in Chinese and Japanese)."""
    found = units(text)[:_LONGEST]
    scale = 2 if unspaced(text) * 2 > len(found) else 1
    return text_hashes(found), np.fromiter(map(len, found), dtype=np.int64, count=len(found)), scale


def _line_share(parts: list[str]) -> float:
    return 1.0 - len(set(parts)) / len(parts) if parts else 0.0


def _top_share(hashes: Hashes, lengths: NDArray[np.int64], n: int) -> float:
    """Return the share of characters inside the commonest n-gram, 0 where none comes twice."""
    grams = ngram_hashes(hashes, n)
    if not len(grams):
        return 0.0
    _, first, counts = np.unique(grams, return_index=True, return_counts=True)
    most = int(counts.max())
    if most < 2:
        return 0.0
    start = int(first[counts == most].min())
    return min(1.0, most * float(lengths[start : start + n].sum()) / float(lengths.sum()))


def _duplicate_share(hashes: Hashes, lengths: NDArray[np.int64], n: int) -> float:
    grams = ngram_hashes(hashes, n)
    if not len(grams):
        return 0.0
    again = np.ones(len(grams), dtype=bool)
    again[np.unique(grams, return_index=True)[1]] = False
    if not again.any():
        return 0.0
    edges = np.zeros(len(lengths) + 1, dtype=np.int64)
    edges[: len(grams)] += again
    edges[n : n + len(grams)] -= again
    covered = np.cumsum(edges[:-1]) > 0
    return float(lengths[covered].sum()) / float(lengths.sum())
