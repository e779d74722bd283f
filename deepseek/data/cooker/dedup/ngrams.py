"""The features that texts are compared by: n-grams of words, and of characters in scripts without spaces.

A feature begins at every token and reaches over the tokens after it, through punctuation but not into another kind of
script or another text, so at the end of a run it is shorter. A text of fewer than n tokens has features all the same;
one without a letter or digit has none. Each counts once in a text, however often it occurs: measured, common words
counted each time bring the codes of strangers near. Not here: what is made of them (`simhash`, `minhash`, `jaccard`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepseek.data.cooker.dedup.tokens import Tokens, tokenize
from deepseek.errors import ConfigError

HASH_BITS = np.uint64(44)
_MOST_TEXTS = 1 << 19
_STEP = np.uint64(0xD6E8FEB86659FD93)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Features(NamedTuple):
    """The features of several texts, one text after the other."""

    hashes: NDArray[np.uint64]
    """(features,): evenly spread 64-bit hashes, each once in a text."""
    offsets: NDArray[np.int64]
    """(texts + 1,): where each text's features begin and end."""


@dataclass(frozen=True)
class NGrams:
    """How many words, or characters of Chinese, Japanese, Korean and their like, make a feature. Raises ConfigError."""

    words: int = 1
    characters: int = 2

    def __post_init__(self) -> None:
        for name, value in (("words", self.words), ("characters", self.characters)):
            if not 1 <= value <= 32:
                raise ConfigError(f"{name} of an n-gram are out of range", found=value, wanted="1 to 32")

    def features(self, texts: Sequence[str]) -> Features:
        """Return the features of `texts`."""
        tokens = tokenize(texts)
        grams = _grams(tokens, self.words)
        if tokens.signs is not None and self.characters != self.words:
            grams = np.where(tokens.signs, _grams(tokens, self.characters), grams)
        return _distinct(mixed(grams), tokens.offsets)


def join_features(parts: Sequence[Features]) -> Features:
    """Return the features of all texts of `parts`, one part after the other."""
    lengths = np.concatenate([np.zeros(1, dtype=np.int64), *(np.diff(part.offsets) for part in parts)])
    hashes = np.concatenate([np.zeros(0, dtype=np.uint64), *(part.hashes for part in parts)])
    return Features(hashes, np.cumsum(lengths))


def _distinct(hashes: NDArray[np.uint64], offsets: NDArray[np.int64]) -> Features:
    """Return each text's hashes once. They are told apart by 44 bits, so that one sort does for half a million texts.

    Two texts of 10,000 n-grams each share one by chance in one pair of 170,000.
    """
    found, bounds = [], [np.zeros(1, dtype=np.int64)]
    for start in range(0, len(offsets) - 1, _MOST_TEXTS):
        part = offsets[start : start + _MOST_TEXTS + 1]
        owners = np.repeat(np.arange(len(part) - 1, dtype=np.uint64) << HASH_BITS, np.diff(part))
        keys = hashes[part[0] : part[-1]] >> (np.uint64(64) - HASH_BITS)
        keys |= owners
        keys.sort()
        keys = keys[np.append(True, keys[1:] != keys[:-1])] if len(keys) else keys
        edges = np.arange(1, len(part), dtype=np.uint64) << HASH_BITS
        bounds.append(bounds[-1][-1] + np.searchsorted(keys, edges))
        keys &= (np.uint64(1) << HASH_BITS) - np.uint64(1)
        found.append(mixed(keys))
    return Features(np.concatenate(found) if found else hashes, np.concatenate(bounds))


def mixed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return `hashes` spread evenly over 64 bits: the finaliser of SplitMix64, https://doi.org/10.1145/2660193.2660195."""
    found = hashes ^ (hashes >> np.uint64(30))
    found *= _MIX_1
    found ^= found >> np.uint64(27)
    found *= _MIX_2
    found ^= found >> np.uint64(31)
    return found


def _grams(tokens: Tokens, length: int) -> NDArray[np.uint64]:
    """Return a hash of the `length` tokens from each on; past the end of a run, zeros stand for tokens."""
    found = tokens.hashes.copy()
    if length == 1 or not len(found):
        return found
    lasts = tokens.offsets[1:] - 1
    lasts = lasts[lasts >= 0]
    if tokens.signs is not None:
        lasts = np.concatenate([lasts, np.flatnonzero(tokens.signs[1:] != tokens.signs[:-1])])
    behind = tokens.hashes
    for _ in range(length - 1):
        behind = np.append(behind[1:], np.uint64(0))
        behind[lasts] = 0
        found *= _STEP
        found += behind
    return found
