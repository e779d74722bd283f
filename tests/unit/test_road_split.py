"""What is held back for validation: the same for the same numbers, disjoint, whole groups, something on both sides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.errors import ConfigError, DataError
from deepseek.road.split import split_rows


@given(st.integers(2, 400), st.floats(0.001, 0.999), st.integers(0, 2**63 - 1))
def test_the_parts_are_disjoint_whole_and_as_large_as_asked(count, fraction, seed):
    split = split_rows(count, fraction, seed)
    assert sorted([*split.train, *split.held_out]) == list(range(count))
    assert len(split.held_out) == min(max(1, round(count * fraction)), count - 1)
    assert (np.diff(split.train) > 0).all() and (np.diff(split.held_out) > 0).all()
    assert split.digest == split_rows(count, fraction, seed).digest


@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=60), st.floats(0.01, 0.99), st.integers(0, 1000))
def test_no_group_is_on_both_sides(groups, fraction, seed):
    if len(set(groups)) < 2:
        with pytest.raises(ConfigError, match="split_by"):
            split_rows(len(groups), fraction, seed, groups)
        return
    split = split_rows(len(groups), fraction, seed, groups)
    held, rest = {groups[row] for row in split.held_out}, {groups[row] for row in split.train}
    assert held == set(split.groups) and held and rest and not held & rest
    assert len(split.held_out) + len(split.train) == len(groups)


def test_seeds_differ_and_no_share_holds_nothing_back():
    assert split_rows(1000, 0.1, 1).digest != split_rows(1000, 0.1, 2).digest
    assert len(split_rows(10, 0.0, 1).held_out) == 0
    with pytest.raises(DataError, match="too few"):
        split_rows(1, 0.5, 0)


def test_the_split_is_pinned():
    """A change here would put held-back samples of earlier runs into training."""
    assert split_rows(20, 0.25, 7).held_out.tolist() == [3, 4, 11, 17, 18]
