"""What a character counts as when texts are compared: its folded form, and how its script is cut into tokens.

Case, width and compatibility forms are folded one code point at a time (Unicode NFKC, then case folding, wherever the
result is a single code point), so `Ａ`, `A` and `a` are one. Not here: composing marks with their letters, which
`tokens` does for a whole text (NFC).
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
from numpy.typing import NDArray

SEPARATOR, LETTER, SIGN = 0, 1, 2
"""Kinds: between tokens; part of a word; a token of its own, in scripts that are written without spaces or, as
Korean, are compared by character all the same."""

KIND_SHIFT = 30
FOLDED = np.uint32((1 << 21) - 1)
_TABLE_END = 0x20000
_IDEOGRAPHS_END = 0x40000  # planes 2 and 3 hold nothing but Chinese characters

_SIGNS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1100, 0x11FF),  # Hangul Jamo
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # radicals
    (0x3005, 0x3007),
    (0x3040, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x3130, 0x318F),  # Hangul compatibility Jamo
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xA000, 0xA4CF),  # Yi
    (0xA960, 0xA97F),
    (0xAC00, 0xD7FF),  # Hangul
    (0xF900, 0xFAFF),
    (0x16FE0, 0x18DFF),  # Tangut, Khitan
    (0x1AFF0, 0x1B2FF),  # old kana, Nushu
)


@functools.cache
def folding_table() -> NDArray[np.uint32]:
    """Return, for each code point below 0x20000, its kind << 30 | its folded code point; 0 for separators."""
    table = np.zeros(_TABLE_END, dtype=np.uint32)
    for code in range(_TABLE_END):
        folded = _folded(code)
        if unicodedata.category(chr(folded))[0] in "LNM":
            table[code] = folded | LETTER << KIND_SHIFT
    folded_codes = table & FOLDED
    for first, last in _SIGNS:
        inside = (folded_codes >= first) & (folded_codes <= last)
        table[inside] = folded_codes[inside] | np.uint32(SIGN << KIND_SHIFT)
    table.flags.writeable = False
    return table


def fold(codes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return kind << 30 | folded code point for each of `codes` (n,); 0 for separators."""
    table = folding_table()
    found: NDArray[np.uint32] = table[np.minimum(codes, np.uint32(_TABLE_END - 1))]
    beyond = np.flatnonzero(codes >= _TABLE_END)
    if len(beyond):
        high = codes[beyond]
        found[beyond] = np.where(high < _IDEOGRAPHS_END, high | np.uint32(SIGN << KIND_SHIFT), np.uint32(0))
    return found


def ascii_translation() -> bytes:
    """Return the table for `bytes.translate` that folds ASCII as `fold` does: 0 for separators."""
    return bytes(code if chr(code).isalnum() else 0 for code in map(_lower_ascii, range(128))) + bytes(128)


def _lower_ascii(code: int) -> int:
    return ord(chr(code).lower())


def _folded(code: int) -> int:
    for text in (unicodedata.normalize("NFKC", chr(code)).casefold(), chr(code).casefold()):
        if len(text) == 1:
            return ord(text)
    return code
