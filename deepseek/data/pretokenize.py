r"""Where text is cut before tokens are learned or looked up: the patterns, and the parts that a long text comes in.

Byte-pair merges never cross the pattern's cuts. A part of `han` or `words` is never longer than 64 characters and the
space before it (GPT-2's own pattern has no such bound), so a megabyte of one letter costs what a megabyte of prose
costs. Chinese has no spaces: a whole clause would be one part, seen once and never again, so `han` cuts runs of Han
characters. Not here: the merges (`tokenizer_training`).

Source: the pattern of GPT-2 (Radford et al. 2019); scripts as in Unicode Standard Annex 24.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from deepseek.data.records import cut_point
from deepseek.errors import TokenizerError

Pattern = Literal["han", "words", "gpt2"]

_CONTRACTION = r"'(?:[sdmt]|ll|ve|re)"
_REST = r" ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]{1,64}|\s{1,64}(?!\S)|\s{1,64}"
PATTERNS: Mapping[Pattern, str] = {
    "han": rf"{_CONTRACTION}| ?\p{{Han}}{{1,16}}| ?[\p{{L}}\p{{M}}&&[^\p{{Han}}]]{{1,64}}|{_REST}",
    "words": rf"{_CONTRACTION}| ?[\p{{L}}\p{{M}}]{{1,64}}|{_REST}",
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
"""Regular expressions of the Oniguruma library, by name.

`han`: as GPT-2, with marks kept on their letters, digits by three and Han characters by sixteen. `words`: the same
without the rule for Han characters. `gpt2`: GPT-2's own.
"""

# White space and the word after it. No part of a pattern reaches from a word into the white space after it, so the
# ids of a text are those of these pieces one after the other, and pieces met before need no second look.
_WHITE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
WORD = re.compile(f"[{_WHITE}]*[^{_WHITE}]+|[{_WHITE}]+")

_PIECE = 1 << 16  # characters encoded in one call of the library; its intermediate form takes about 100 bytes a token
_BATCH = 1 << 20  # characters encoded at a time over all cores


def checked(text: str) -> str:
    """Return `text`. Raises TokenizerError for lone surrogates, which no UTF-8 has, and for what is no str."""
    if not isinstance(text, str):
        raise TokenizerError("only text can be encoded", found=type(text).__name__, wanted="str")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                "the text holds a lone surrogate, which no UTF-8 has",
                found=f"U+{ord(text[error.start]):04X} at character {error.start}",
                fix="decode the bytes as UTF-8, or text.encode('utf-8', 'replace').decode()",
            ) from None
    return text


def pieces(text: str) -> Iterator[str]:
    """Yield `text` in pieces of at most 64 Ki characters, cut after a word wherever there is one."""
    start = 0
    while len(text) - start > _PIECE:
        end = cut_point(text, start, _PIECE)
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def batches(texts: Sequence[str], *, cut: bool = True) -> Iterator[tuple[list[int], list[str]]]:
    """Yield (indices of texts, pieces of them), about a mebibyte of pieces at a time; with `cut` false whole texts.

    Raises TokenizerError as `checked`.
    """
    owners: list[int] = []
    batch: list[str] = []
    size = 0
    for owner, text in enumerate(texts):
        parts = pieces(text) if cut and len(checked(text)) > _PIECE else (checked(text),)
        for piece in parts:
            owners.append(owner)
            batch.append(piece)
            size += len(piece) + 64
            if size >= _BATCH:
                yield owners, batch
                owners, batch, size = [], [], 0
    if batch:
        yield owners, batch
