"""Learning a vocabulary of byte pairs from a corpus of any size, in bounded memory.

A corpus larger than the sample is read once. Each document draws a number from (seed, its place) alone, and the
documents with the smallest numbers that fit are kept: a uniform sample without knowing how many there are, the same on
every machine. Not here: the tokenizer that comes out (`tokenizer`).

Source: bottom-k sampling, Cohen and Kaplan 2007, https://doi.org/10.1145/1281100.1281133; byte pairs, Sennrich et al.
2016, https://arxiv.org/abs/1508.07909.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator

from tokenizers import AddedToken, pre_tokenizers, trainers

from deepseek.data.pretokenize import Pattern, checked, pieces
from deepseek.data.tokenizer_format import MIN_VOCAB_SIZE, SPECIAL_TOKENS, assemble
from deepseek.errors import TokenizerError

MAX_VOCAB_SIZE = 1 << 20
_MASK = (1 << 64) - 1

TrainingProgress = Callable[[int, int], None]


def train_json(texts: Iterable[str], vocab_size: int, pattern: Pattern, *, allow_smaller: bool) -> str:
    """Return the tokenizer.json of `vocab_size` tokens learned from `texts`. Raises TokenizerError."""
    if not MIN_VOCAB_SIZE <= vocab_size <= MAX_VOCAB_SIZE:
        raise TokenizerError(
            "vocab_size is out of range", found=vocab_size, wanted=f"{MIN_VOCAB_SIZE} to {MAX_VOCAB_SIZE}"
        )
    library = assemble(pattern)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(_training_pieces(texts), trainer)
    trained = library.get_vocab_size()
    if trained < vocab_size and not allow_smaller:
        raise TokenizerError(
            "the text is too small for this vocabulary",
            found=f"at most {trained} tokens that occur twice",
            wanted=f"vocab_size = {vocab_size}",
            fix=f"set vocab_size to {trained} or less, or train on more text",
        )
    return library.to_str(pretty=True)


def sample_texts(
    texts: Iterable[str], sample_bytes: int, seed: int = 0, progress: TrainingProgress | None = None
) -> list[str]:
    """Return a uniform sample of `texts`, in their order, of at most `sample_bytes` bytes of UTF-8.

    All of them where they fit. A single text longer than that is cut. `progress(bytes_read, bytes_kept)` is called
    about once a mebibyte. Memory: the sample and one text. Raises TokenizerError for what can't be encoded.
    """
    if sample_bytes < 1:
        raise TokenizerError("sample_bytes is too small", found=sample_bytes, wanted="at least 1")
    kept: list[tuple[int, int, int, str]] = []  # (-number drawn, -place, bytes, text): the largest number first
    size = read = told = 0
    limit = 1 << 64  # numbers from here on are out: a document with a smaller one did not fit
    for place, text in enumerate(texts):
        data = checked(text).encode()
        read += len(data)
        drawn = _draw(seed, place)
        if drawn < limit:
            if len(data) > sample_bytes:
                data = data[:sample_bytes]
                text = data.decode("utf-8", errors="ignore")
            heapq.heappush(kept, (-drawn, -place, len(data), text))
            size += len(data)
            while size > sample_bytes:
                out = heapq.heappop(kept)
                limit, size = -out[0], size - out[2]
        if progress is not None and read - told >= 1 << 20:
            told = read
            progress(read, size)
    if progress is not None:
        progress(read, size)
    return [text for _, _, _, text in sorted(kept, key=lambda entry: -entry[1])]


def _draw(seed: int, place: int) -> int:
    """Return 64 random bits of a document: the SplitMix64 hash of its place, keyed by that of the seed."""
    value = 0
    for part in (seed, place):
        value = ((value ^ part) + 1) * 0x9E3779B97F4A7C15 & _MASK
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
        value ^= value >> 31
    return value


def _training_pieces(texts: Iterable[str]) -> Iterator[str]:
    parts = itertools.chain.from_iterable(pieces(checked(text)) for text in texts)
    first = next((piece for piece in parts if piece), None)
    if first is None:
        raise TokenizerError("there is no text to train a tokenizer on", wanted="at least one text that is not empty")
    yield first
    yield from parts
