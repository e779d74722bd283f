"""Many words found in a text in one pass, whatever their number: the Aho-Corasick automaton.

Source: Aho and Corasick 1975, "Efficient string matching: an aid to bibliographic search", doi:10.1145/360825.360855.
Case and full-width forms don't matter; a word of Latin letters or digits must stand alone, "ass" is not in "class".
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable

from deepseek.errors import ConfigError

_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}


def fold(text: str) -> str:
    """Return `text` in lower case and half width, with as many characters as it had."""
    folded = text.translate(_WIDE).lower()
    if len(folded) != len(text):  # a few letters have two in lower case; those stay
        folded = "".join(low if len(low := letter.lower()) == 1 else letter for letter in text.translate(_WIDE))
    return folded


class WordSearch:
    """The automaton of a list of words. Raises ConfigError for a list without any word."""

    def __init__(self, words: Iterable[str]) -> None:
        self._words = sorted({fold(word.strip()) for word in words if word.strip()})
        if not self._words:
            raise ConfigError("the word list is empty", wanted="at least one word")
        self._next: list[dict[str, int]] = [{}]
        self._fail = [0]
        self._ends: list[tuple[int, ...]] = [()]
        for number, word in enumerate(self._words):
            self._insert(word, number)
        self._link()
        self._starts = re.compile("[" + "".join(re.escape(letter) for letter in self._next[0]) + "]")

    def _insert(self, word: str, number: int) -> None:
        state = 0
        for letter in word:
            if letter not in self._next[state]:
                self._next[state][letter] = len(self._next)
                self._next.append({})
                self._fail.append(0)
                self._ends.append(())
            state = self._next[state][letter]
        self._ends[state] += (number,)

    def _link(self) -> None:
        """Set each state's longest proper suffix that is a state too, and take over the words that end there."""
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            for letter, child in self._next[state].items():
                back = self._fail[state]
                while back and letter not in self._next[back]:
                    back = self._fail[back]
                self._fail[child] = self._next[back].get(letter, 0)
                self._ends[child] += self._ends[self._fail[child]]
                waiting.append(child)

    def find(self, text: str) -> list[tuple[int, int, str]]:
        """Return `(start, end, word)` of every occurrence, in order of their ends. Linear in the text's length."""
        text = fold(text)
        found: list[tuple[int, int, str]] = []
        state, place = 0, 0
        while place < len(text):
            if state == 0:  # nothing begun: go to the next letter that a word begins with
                start = self._starts.search(text, place)
                if start is None:
                    break
                place = start.start()
            letter = text[place]
            while state and letter not in self._next[state]:
                state = self._fail[state]
            state = self._next[state].get(letter, 0)
            place += 1
            for number in self._ends[state]:
                word = self._words[number]
                if _alone(text, place - len(word), place):
                    found.append((place - len(word), place, word))
        return found


def _alone(text: str, start: int, end: int) -> bool:
    before, after = text[start - 1 : start], text[end : end + 1]
    return not (_latin(text[start]) and _latin(before)) and not (_latin(text[end - 1]) and _latin(after))


def _latin(character: str) -> bool:
    return character.isalnum() and character < "\u0250"
