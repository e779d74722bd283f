"""How wrong recognised text is: word, character and mixed error rate by edit distance.

An error rate is the least number of words (or characters) to change, leave out or put in, over all texts, divided by
the number in the references. It may pass 1. Upper and lower case, punctuation and forms of the same letter differ, as
nothing is normalised here.
Source: Levenshtein 1966, "Binary Codes Capable of Correcting Deletions, Insertions and Reversals" (the distance).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from deepseek.errors import DataError

_MIXED = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]|[^\s\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)


class ErrorRate(NamedTuple):
    """Edits over a set of texts."""

    rate: float
    """Edits divided by `total`; 0 is no error."""
    substitutions: int
    deletions: int
    """Items of the reference that the hypothesis lacks."""
    insertions: int
    """Items of the hypothesis that the reference lacks."""
    total: int
    """Items in the references."""


def edit_counts(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> tuple[int, int, int]:
    """Return (substitutions, deletions, insertions) of a shortest way from `reference` to `hypothesis`.

    Their sum is the edit distance. Of equally short ways, one that rather substitutes than deletes and inserts.
    """
    numbers: dict[Hashable, int] = {}
    rows, columns = ([numbers.setdefault(item, len(numbers)) for item in text] for text in (reference, hypothesis))
    wanted = np.array(columns, dtype=np.int64)
    steps = np.arange(len(columns) + 1)
    distances = [steps]
    for number in rows:
        above = distances[-1]
        row = above + 1
        row[1:] = np.minimum(row[1:], above[:-1] + (wanted != number))
        distances.append(np.minimum.accumulate(row - steps) + steps)  # insertions, from left to right
    return _trace(rows, columns, distances)


def _trace(rows: list[int], columns: list[int], distances: list[np.typing.NDArray[np.int64]]) -> tuple[int, int, int]:
    substitutions = deletions = insertions = 0
    i, j = len(rows), len(columns)
    while i and j:
        differs, here = int(rows[i - 1] != columns[j - 1]), distances[i][j]
        if here == distances[i - 1][j - 1] + differs:
            substitutions += differs
            i, j = i - 1, j - 1
        elif here == distances[i - 1][j] + 1:
            deletions, i = deletions + 1, i - 1
        else:
            insertions, j = insertions + 1, j - 1
    return substitutions, deletions + i, insertions + j


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Return the error rate in words, which white space parts. Raises DataError, see `error_rate`."""
    return error_rate(references, hypotheses, str.split)


def character_error_rate(
    references: Sequence[str], hypotheses: Sequence[str], *, ignore_spaces: bool = False
) -> ErrorRate:
    """Return the error rate in characters, runs of white space being one space, or none with `ignore_spaces`."""
    items = (lambda text: list("".join(text.split()))) if ignore_spaces else character_items
    return error_rate(references, hypotheses, items)


def mixed_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Return the error rate for mixed text: Chinese characters and Japanese kana one by one, all else in words."""
    return error_rate(references, hypotheses, _MIXED.findall)


class ErrorCount:
    """Adds up the edits of pairs of texts, each a sequence of items (words, characters, tokens)."""

    def __init__(self) -> None:
        self._counts, self._total = [0, 0, 0], 0
        self.wrong = self.texts = 0
        """How many texts have an edit, and how many there are."""

    def update(self, reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> None:
        """Add a pair."""
        edits = edit_counts(reference, hypothesis)
        self._counts = [sum(pair) for pair in zip(self._counts, edits, strict=True)]
        self._total += len(reference)
        self.wrong += any(edits)
        self.texts += 1

    def result(self) -> ErrorRate:
        """Return the rate over all pairs. Raises DataError where the references hold nothing."""
        if self._total == 0:
            raise DataError("the references are empty", wanted="at least one word")
        substitutions, deletions, insertions = self._counts
        return ErrorRate(sum(self._counts) / self._total, substitutions, deletions, insertions, self._total)


def character_items(text: str) -> list[str]:
    """Return the characters of a text, runs of white space being one space."""
    return list(" ".join(text.split()))


def error_rate(
    references: Sequence[str], hypotheses: Sequence[str], items: Callable[[str], Sequence[Hashable]]
) -> ErrorRate:
    """Return the error rate over all pairs of texts, in what `items` cuts a text into.

    Raises DataError for lists of different lengths, and where the references hold nothing.
    """
    if isinstance(references, str) or isinstance(hypotheses, str):
        raise DataError("an error rate is of lists of texts", found="one text", wanted="[text], [text]")
    if len(references) != len(hypotheses):
        raise DataError("every reference needs its hypothesis", found=f"{len(references)} and {len(hypotheses)} texts")
    count = ErrorCount()
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        count.update(items(reference), items(hypothesis))
    return count.result()
