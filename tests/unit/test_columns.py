"""Strings in two arrays: what goes in comes out, and little memory is used."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.data.columns import StringColumn

_ANY_TEXT = st.text(st.characters(), max_size=20)  # lone surrogates too, as file names may have


@given(st.lists(_ANY_TEXT, max_size=30))
def test_rows_come_back_as_they_were(values: list[str]) -> None:
    column = StringColumn(values)
    assert len(column) == len(values)
    assert list(column) == values
    assert [column[row - len(values)] for row in range(len(values))] == values
    assert list(pickle.loads(pickle.dumps(column))) == values


def test_a_row_that_is_not_there() -> None:
    column = StringColumn(["a", "b"])
    for row in (2, -3):
        with pytest.raises(IndexError, match="column of 2"):
            column[row]
    with pytest.raises(IndexError):
        StringColumn([])[0]


def test_it_costs_its_text_and_eight_bytes_a_row() -> None:
    column = StringColumn(f"folder/{row:06}.png" for row in range(1000))
    assert column.nbytes == 1000 * len("folder/000000.png") + 8 * 1001


def test_it_can_not_be_written_to() -> None:
    column = StringColumn(["abc"])
    with pytest.raises(ValueError, match="read-only"):
        column._data[0] = 0
