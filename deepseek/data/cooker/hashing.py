"""64-bit hashes of words and of n-grams of words, equal in every process and on every machine.

Not a defence against chosen collisions. n-grams are polynomials of their words' hashes (Karp and Rabin 1987,
doi:10.1147/rd.312.0249), mixed at the end, over a whole text at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xFF51AFD7ED558CCD)


@lru_cache(maxsize=1 << 16)
def text_hash(text: str) -> int:
    """Return the first 64 bits of the text's BLAKE2b hash."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def text_hashes(texts: Sequence[str]) -> Hashes:
    """Return the hash of each text, uint64 (len(texts),)."""
    return np.fromiter(map(text_hash, texts), dtype=np.uint64, count=len(texts))


def ngram_hashes(hashes: Hashes, n: int) -> Hashes:
    """Return the hash of each run of `n` hashes, uint64 (len - n + 1,), empty where there are fewer than `n`."""
    count = len(hashes) - n + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64)
    out = np.zeros(count, dtype=np.uint64)
    for place in range(n):
        out = out * _BASE + hashes[place : place + count]
    out ^= out >> np.uint64(33)
    out *= _MIX
    return out ^ (out >> np.uint64(29))
