"""SimHash: 64 bits of a text of which few change when little of the text does.

Bit b is the majority of bit b over the hashes of the text's distinct features (Charikar 2002,
https://doi.org/10.1145/509907.509965; for near-duplicates of web pages Manku et al. 2007,
https://doi.org/10.1145/1242572.1242592). A tie takes the bit of the text's first feature. The votes of thousands of
texts are counted together in bit-sliced counters: word p of a text holds bit p of all its 64 counts, and seven full
adders take in eight features. Not here: finding codes that are near (`hamming`, `simhash_index`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deepseek.data.cooker.dedup.ngrams import Features, NGrams, join_features, mixed
from deepseek.data.cooker.dedup.parallel import map_blocks

Words = NDArray[np.uint64]

_LONG = 4096  # features: a longer text is counted by itself
_REMEMBERED = 1 << 26  # characters
_ONE = np.uint64(1)


def simhash(texts: Sequence[str], ngrams: NGrams | None = None, workers: int | None = None) -> Words:
    """Return the SimHash of each text, uint64 (texts,); 0 for a text without features.

    `workers` threads (all cores where None) share the texts in blocks; the codes depend on the texts alone.
    """
    grams = NGrams() if ngrams is None else ngrams
    codes = map_blocks(lambda block: majority_bits(grams.features(block)), texts, workers)
    return np.concatenate(codes) if codes else np.zeros(0, dtype=np.uint64)


def simhash_twice(
    texts: Sequence[str], ngrams: NGrams, workers: int | None = None
) -> tuple[Words, Words, Features | None]:
    """Return the SimHash of each text and a second, independent one: 64 more bits to check a pair by.

    The features come too, for who wants to look at them again, where the texts have at most 64 million characters.
    """
    few = sum(map(len, texts)) <= _REMEMBERED

    def both(block: Sequence[str]) -> tuple[Words, Words, Features | None]:
        features = ngrams.features(block)
        second = majority_bits(Features(mixed(~features.hashes), features.offsets))
        return majority_bits(features), second, features if few else None

    codes = map_blocks(both, texts, workers)
    if not codes:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.uint64), None
    features = join_features([one for _, _, one in codes if one is not None]) if few else None
    return np.concatenate([one for one, _, _ in codes]), np.concatenate([other for _, other, _ in codes]), features


def majority_bits(features: Features) -> Words:
    """Return, for each text, the bits that are set in more than half of its features, uint64 (texts,)."""
    starts, lengths = features.offsets[:-1], np.diff(features.offsets)
    found = np.zeros(len(lengths), dtype=np.uint64)
    order = np.argsort(-lengths, kind="stable")
    num_long = int(np.count_nonzero(lengths > _LONG))
    for text in order[:num_long]:
        found[text] = _majority_of_one(features.hashes[starts[text] : starts[text] + lengths[text]])
    order = order[num_long : np.count_nonzero(lengths)]
    if len(order):
        found[order] = _majorities(features.hashes, starts[order], lengths[order])
    return found


def _majorities(hashes: Words, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Words:
    """Return the majorities of the texts at `starts`, longest first, none empty."""
    planes = [np.zeros(len(starts), dtype=np.uint64) for _ in range(int(lengths[0]).bit_length() + 3)]
    reach = np.searchsorted(-lengths, -np.arange(lengths[0] + 8), side="left")  # how many texts have a feature there
    for step in range(0, int(lengths[0]), 8):
        active = int(reach[step])
        rows = np.zeros((8, active), dtype=np.uint64)
        for place in range(8):
            have = int(reach[step + place])
            np.take(hashes, starts[:have] + (step + place), out=rows[place, :have], mode="clip")
        _add_eight([plane[:active] for plane in planes], rows)
    return _more_than_half(planes, lengths, hashes[starts])


def _add_eight(planes: list[Words], rows: Words) -> None:
    """Add the eight `rows` (8, texts) to the counters in place."""
    ones, twos, fours = planes[:3]
    twos_a = _add(ones, rows[0], rows[1])
    twos_b = _add(ones, rows[2], rows[3])
    fours_a = _add(twos, twos_a, twos_b)
    twos_a = _add(ones, rows[4], rows[5])
    twos_b = _add(ones, rows[6], rows[7])
    fours_b = _add(twos, twos_a, twos_b)
    carry = _add(fours, fours_a, fours_b)
    for plane in planes[3:]:
        overflow = plane & carry
        plane ^= carry
        carry = overflow


def _add(total: Words, first: Words, second: Words) -> Words:
    """Add two one-bit numbers into `total` in place and return the carry: a full adder on 64 lanes a word."""
    either = total ^ first
    carry = total & first
    np.bitwise_xor(either, second, out=total)
    either &= second
    carry |= either
    return carry


def _more_than_half(planes: list[Words], lengths: NDArray[np.int64], ties: Words) -> Words:
    """Return the bits whose count is above half of `lengths`, or at it where `ties` has the bit."""
    doubled = [np.zeros_like(planes[0]), *planes]  # twice the count, against the length: no half is lost
    above, equal = np.zeros_like(ties), ~np.zeros_like(ties)
    wanted = lengths.astype(np.uint64)
    for place in range(len(doubled) - 1, -1, -1):
        bit = np.uint64(0) - ((wanted >> np.uint64(place)) & _ONE)  # all ones or none
        above |= equal & doubled[place] & ~bit
        equal &= ~(doubled[place] ^ bit)
    return above | (equal & ties)


def _majority_of_one(hashes: Words) -> np.uint64:
    counts = np.zeros(64, dtype=np.int64)
    for start in range(0, len(hashes), 1 << 16):
        rows = hashes[start : start + (1 << 16)].astype("<u8").view(np.uint8).reshape(-1, 8)
        counts += np.unpackbits(rows, axis=1, bitorder="little").sum(axis=0, dtype=np.int64)
    ties = np.unpackbits(hashes[:1].astype("<u8").view(np.uint8), bitorder="little").astype(bool)
    bits = (2 * counts > len(hashes)) | ((2 * counts == len(hashes)) & ties)
    return np.uint64(np.packbits(bits, bitorder="little").view("<u8")[0])
