"""Ids to text one at a time, as a model says them.

Not here: ids to text at once (`Tokenizer.decode`).
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Protocol


class Decoding(Protocol):
    """What a stream needs of a tokenizer."""

    @property
    def lossless(self) -> bool: ...

    def token_bytes(self, index: int) -> bytes: ...

    def decode(self, ids: Iterable[int]) -> str: ...


class TokenStream:
    """Turns ids into text one at a time; a character spread over several tokens comes out whole, with its last one.

    The texts of all `push` calls and of `finish`, joined, are `tokenizer.decode` of the ids.
    """

    def __init__(self, tokenizer: Decoding) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._ids: list[int] = []
        self._said = ""

    def push(self, index: int) -> str:
        """Take one id and return the characters that are whole now; special tokens give none."""
        value = self._tokenizer.token_bytes(index)
        if self._tokenizer.lossless:
            return self._decoder.decode(value)
        self._ids.append(index)
        return self._new()

    def finish(self) -> str:
        """Return what is left: U+FFFD when the ids ended inside a character."""
        return self._decoder.decode(b"", final=True) if self._tokenizer.lossless else self._new(final=True)

    def _new(self, *, final: bool = False) -> str:
        """Return what the ids so far have added to the text."""
        text = self._tokenizer.decode(self._ids)
        end = len(text) if final else len(text.rstrip("\ufffd"))
        new = text[len(self._said) : end]
        self._said += new
        return new
