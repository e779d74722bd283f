"""Which tokens make up a word: what white space parts, and in Chinese and Japanese what a list of words knows.

Tokens are taken by their bytes, so every kind of tokenizer will do. Chinese text has no spaces: a run of its characters
is cut from left to right into the longest words of the list, single characters where none fits (forward maximum
matching; Chen and Liu 1992, "Word identification for Mandarin Chinese sentences", doi:10.3115/992066.992085).
Not here: hiding words (`masking`), parts of speech, statistical segmentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from deepseek.errors import ConfigError

_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_RUNS = re.compile(f"[{_CJK}]+|[^\\W{_CJK}]+|[^\\w\\s]")
"""Runs of Chinese or Japanese characters, words of other scripts, and single signs."""


class Piece(NamedTuple):
    """What a token stands for, and whether it goes on the token before without a space.

    Between two Chinese or Japanese characters no space is taken to be, as WordPiece parts them all.
    """

    text: bytes
    glued: bool


class Lexicon:
    """A set of words, none of them longer than `longest` characters."""

    def __init__(self, words: Sequence[str] = ()) -> None:
        self.words = frozenset(words)
        self.longest = max(map(len, self.words), default=1)

    @classmethod
    def read(cls, path: str | Path) -> Lexicon:
        """Read a file of UTF-8 with a word at the beginning of each line; what follows a space is not read.

        Raises ConfigError where it can't be read, or holds no word.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"can't read the word list {path}", found=str(error), wanted="a file of UTF-8") from None
        words = [line.split()[0] for line in lines if line.strip()]
        if not words:
            raise ConfigError(f"the word list {path} is empty", wanted="a word on each line")
        return cls(words)

    def cut(self, run: str) -> Iterator[str]:
        """Yield the words of a run of characters, the longest known ones from left to right."""
        start = 0
        while start < len(run):
            ends = range(min(len(run), start + self.longest), start + 1, -1)
            end = next((end for end in ends if run[start:end] in self.words), start + 1)
            yield run[start:end]
            start = end


def word_numbers(pieces: Sequence[Piece | None], lexicon: Lexicon) -> list[int]:
    """Return for each token the number of its word, rising from 0; -1 for tokens that are of none (None, spaces).

    A token belongs to the word in which its first byte that is no space lies.
    """
    starts, text = [], bytearray()
    for piece in pieces:
        if piece is None:
            text += b"\n"
            starts.append(-1)
            continue
        if not piece.glued and not (_is_cjk(bytes(text[-4:]), -1) and _is_cjk(piece.text, 0)):
            text += b" "
        starts.append(len(text) + len(piece.text) - len(piece.text.lstrip()) if piece.text.strip() else -1)
        text += piece.text
    owner = _owners(bytes(text), lexicon)
    numbers: dict[int, int] = {}
    return [-1 if start < 0 or owner[start] < 0 else numbers.setdefault(owner[start], len(numbers)) for start in starts]


def _is_cjk(text: bytes, place: int) -> bool:
    """Return whether the first (0) or last (-1) character is Chinese or Japanese."""
    characters = text.decode("utf-8", "ignore")
    return bool(characters) and re.match(f"[{_CJK}]", characters[place]) is not None


def _owners(text: bytes, lexicon: Lexicon) -> list[int]:
    """Return for each byte the number of the word it is in, -1 for none. Bytes that are no UTF-8 are words of one."""
    owner, place, word = [], 0, 0
    decoded = text.decode("utf-8", "surrogateescape")
    for run in _RUNS.finditer(decoded):
        owner += [-1] * len(decoded[place : run.start()].encode("utf-8", "surrogateescape"))
        for part in lexicon.cut(run[0]) if re.match(f"[{_CJK}]", run[0]) else [run[0]]:
            owner += [word] * len(part.encode("utf-8", "surrogateescape"))
            word += 1
        place = run.end()
    return owner + [-1] * len(decoded[place:].encode("utf-8", "surrogateescape"))
