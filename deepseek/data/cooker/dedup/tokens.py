"""Many texts at once to the hashes of their tokens: words, and single characters of scripts without spaces.

A token's hash is its polynomial in an odd base modulo 2**64 (Karp and Rabin 1987, https://doi.org/10.1147/rd.312.0249),
read off running sums over the block, so nothing is done token by token. Texts of ASCII alone are read as bytes, others
as code points; equal words have equal hashes either way. Not here: n-grams (`ngrams`).
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepseek.data.cooker.dedup.bucket_tables import ranges
from deepseek.data.cooker.dedup.folding import FOLDED, KIND_SHIFT, SIGN, ascii_translation, fold

_PIECE = 1 << 18  # characters: the arrays of a piece stay in the cache
_BASE = 0x9E3779B97F4A7C15
_WRAP = (1 << 64) - 1
_ASCII = ascii_translation()


class Tokens(NamedTuple):
    """The tokens of several texts, one text after the other."""

    hashes: NDArray[np.uint64]
    """(tokens,)"""
    signs: NDArray[np.bool_] | None
    """(tokens,): which are single characters; None where all are words."""
    offsets: NDArray[np.int64]
    """(texts + 1,): where each text's tokens begin and end."""


def tokenize(texts: Sequence[str]) -> Tokens:
    """Return the tokens of `texts`, letter case, width, punctuation and spaces aside.

    A text longer than 262,144 characters is cut at a space into pieces (a word as long as that is cut too), which
    bounds the memory at about 30 bytes a token and 8 MB besides.
    """
    pieces = [(owner, piece) for owner, text in enumerate(texts) for piece in _pieces(text)]
    owners = np.fromiter((owner for owner, _ in pieces), dtype=np.int64, count=len(pieces))
    plain = [place for place, (_, piece) in enumerate(pieces) if piece.isascii()]
    other = [place for place, (_, piece) in enumerate(pieces) if not piece.isascii()]
    read = [_tokenize_ascii([pieces[place][1] for place in batch]) for batch in _batches(pieces, plain)]
    read += [_tokenize_unicode([pieces[place][1] for place in batch]) for batch in _batches(pieces, other)]
    lengths = np.concatenate([np.zeros(0, dtype=np.int64), *(np.diff(tokens.offsets) for tokens in read)])
    counts = np.bincount(owners[plain + other], weights=lengths, minlength=len(texts)).astype(np.int64)
    hashes = np.concatenate([np.zeros(0, dtype=np.uint64), *(tokens.hashes for tokens in read)])
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
    if not other:
        return Tokens(hashes, None, offsets)
    signs = np.concatenate([np.zeros(len(t.hashes), dtype=np.bool_) if t.signs is None else t.signs for t in read])
    order = np.argsort(plain + other)  # the pieces as they came
    places = ranges((np.cumsum(lengths) - lengths)[order], lengths[order])
    return Tokens(hashes[places], signs[places], offsets)


def _batches(pieces: Sequence[tuple[int, str]], places: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield runs of `places` whose pieces have about `_PIECE` characters in all."""
    start = characters = 0
    for end, place in enumerate(places):
        length = len(pieces[place][1])
        if end > start and characters + length > _PIECE:
            yield places[start:end]
            start, characters = end, 0
        characters += length
    if start < len(places):
        yield places[start:]


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE:
        end = text.rfind(" ", start + 1, start + _PIECE)
        end = start + _PIECE if end < 0 else end
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def _tokenize_ascii(texts: Sequence[str]) -> Tokens:
    joined = f" {' '.join(texts)} "
    codes = np.frombuffer(joined.encode("ascii").translate(_ASCII), dtype=np.uint8)
    inside = codes != 0
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    starts, ends = edges[0::2], edges[1::2]
    return Tokens(_hashes(codes, starts, ends), None, _offsets(texts, starts))


def _tokenize_unicode(texts: Sequence[str]) -> Tokens:
    texts = [text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text) for text in texts]
    joined = f" {' '.join(texts)} "
    folded = fold(np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype="<u4"))
    kinds = (folded >> np.uint32(KIND_SHIFT)).astype(np.uint8)
    signs = kinds == SIGN
    inside = kinds != 0
    borders = (kinds[1:] != kinds[:-1]) | signs[1:]
    starts = np.flatnonzero(borders & inside[1:]) + 1
    borders = (kinds[1:] != kinds[:-1]) | signs[:-1]
    ends = np.flatnonzero(borders & inside[:-1]) + 1
    return Tokens(_hashes(folded & FOLDED, starts, ends), signs[starts], _offsets(texts, starts))


def _hashes(
    codes: NDArray[np.uint8] | NDArray[np.uint32], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Return the polynomial of each `codes[start:end]`. The first code is a separator, so `starts` are above 0."""
    powers, inverses = _powers(1 << (len(codes) - 1).bit_length())
    sums = np.multiply(codes, powers[: len(codes)], dtype=np.uint64)
    np.cumsum(sums, out=sums)
    found: NDArray[np.uint64] = sums[ends - 1]
    found -= sums[starts - 1]
    found *= inverses[starts]
    return found


def _offsets(texts: Sequence[str], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    ends = np.cumsum(lengths + 1) + 1
    return np.concatenate([np.zeros(1, dtype=np.int64), np.searchsorted(starts, ends)])


@functools.lru_cache(maxsize=4)
def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the powers 0 to `count` - 1 of the base and of its inverse, modulo 2**64."""
    found = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        powers = np.ones(1, dtype=np.uint64)
        while len(powers) < count:
            powers = np.concatenate([powers, powers * np.uint64(pow(base, len(powers), 1 << 64) & _WRAP)])
        powers.flags.writeable = False
        found.append(powers)
    return found[0], found[1]
