"""Special tokens in a text: where they stand, for those texts in which they are asked for.

Not here: chats (`chat_template`) and ids (`tokenizer`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple


class Special(NamedTuple):
    """A special token that a text is searched for, and whether it takes the white space beside it along."""

    text: str
    lstrip: bool = False
    rstrip: bool = False


class Segment(NamedTuple):
    """A special token, or text between two; `learned` are the parts (begin, end) that are to be learned."""

    text: str
    special: bool
    learned: tuple[tuple[int, int], ...] = ()


def split_specials(text: str, specials: Collection[Special], guard: str = "") -> Iterator[tuple[str, bool, int]]:
    """Yield the parts of `text`, whether each is a special token, and where it begins; the longest token wins.

    A token that the character `guard` follows is text.
    """
    end = 0
    for match in _pattern(frozenset(specials), guard).finditer(text) if specials else ():
        if match.start() > end:
            yield text[end : match.start()], False, end
        token = match.lastindex or 0
        yield match[token], True, match.start(token)
        end = match.end()
    if end < len(text):
        yield text[end:], False, end


@functools.lru_cache(maxsize=64)
def _pattern(specials: frozenset[Special], guard: str) -> re.Pattern[str]:
    after = f"(?!{guard})" if guard else ""
    ordered = sorted(specials, key=lambda special: (-len(special.text), special.text))
    return re.compile(
        "|".join(
            (r"\s*" if lstrip else "") + f"({re.escape(text)})" + after + (r"\s*" if rstrip else "")
            for text, lstrip, rstrip in ordered
        )
    )
