"""Error rates against a search over all edits, and on texts counted by hand."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.errors import DataError
from deepseek.metrics.error_rate import (
    character_error_rate,
    edit_counts,
    mixed_error_rate,
    word_error_rate,
)

texts = st.text("ab", max_size=6)


def distance(one: str, two: str) -> int:
    """Return the edit distance by its definition."""

    @functools.cache
    def rest(i: int, j: int) -> int:
        if i == len(one) or j == len(two):
            return len(one) - i + len(two) - j
        same = rest(i + 1, j + 1) + (one[i] != two[j])
        return min(same, rest(i + 1, j) + 1, rest(i, j + 1) + 1)

    return rest(0, 0)


@given(texts, texts)
def test_the_counts_add_up_to_the_edit_distance_and_the_lengths(one: str, two: str) -> None:
    substitutions, deletions, insertions = edit_counts(one, two)
    assert min(substitutions, deletions, insertions) >= 0
    assert substitutions + deletions + insertions == distance(one, two)
    assert len(two) - len(one) == insertions - deletions


def test_word_error_rate_counted_by_hand() -> None:
    found = word_error_rate(["the cat sat on the mat", "hello"], ["the cat sit on mat", "hello now"])
    assert (found.substitutions, found.deletions, found.insertions, found.total) == (1, 1, 1, 7)
    assert found.rate == pytest.approx(3 / 7)
    assert word_error_rate(["a b"], ["x y z w"]).rate == 2
    assert word_error_rate(["a b"], [" a  b\n"]).rate == 0


def test_character_error_rate_with_and_without_spaces() -> None:
    assert character_error_rate(["今天天气很好"], ["今天天汽很"]).rate == pytest.approx(2 / 6)
    assert character_error_rate(["ab  cd"], ["abcd"]).rate == pytest.approx(1 / 5)
    assert character_error_rate(["ab  cd"], ["abcd"], ignore_spaces=True).rate == 0


def test_mixed_text_is_counted_in_chinese_characters_and_other_words() -> None:
    found = mixed_error_rate(["请打开 Bluetooth 设置"], ["请打开Blue tooth设定"])
    assert found.total == 6  # 请 打 开 Bluetooth 设 置
    assert found.rate == pytest.approx(3 / 6)  # Blue for Bluetooth, tooth put in, 定 for 置
    assert mixed_error_rate(["请打开 Bluetooth"], ["请 打 开Bluetooth"]).rate == 0


def test_long_texts_take_no_time_to_speak_of() -> None:
    reference = [f"word{i % 97}" for i in range(1500)]
    assert sum(edit_counts(reference, reference[3:] + ["x"])) == 4


def test_nothing_to_compare_is_refused() -> None:
    for references, hypotheses in ((["a"], []), ([], []), ([" "], ["a"]), ("abc", "abc")):
        with pytest.raises(DataError):
            word_error_rate(references, hypotheses)
