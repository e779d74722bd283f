"""Trees of tensors and plain values come back as they were, through JSON and through a checkpoint on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepseek.checkpoint.dtypes import DTYPES
from deepseek.checkpoint.store import load_checkpoint, save_checkpoint
from deepseek.checkpoint.tree import join_tree, split_tree
from deepseek.errors import CheckpointError


def tensor(dtype: torch.dtype, shape: list[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    count = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    numbers = torch.randint(2 if dtype == torch.bool else 256, (count,), generator=generator, dtype=torch.uint8)
    return numbers.view(dtype).reshape(shape)


tensors = st.builds(
    tensor, st.sampled_from(list(DTYPES.values())), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 99)
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | tensors
keys = st.text(max_size=4) | st.integers() | st.sampled_from(["a/b", "$tensor", "$tuple", "__metadata__", "", (1, "a")])
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.tuples(inner, inner).map(lambda pair: {"a": {"b": pair[0]}, "a/b": pair[1]})
    ),
    max_leaves=8,
)


def assert_same(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    if isinstance(wanted, Tensor):
        assert found.dtype == wanted.dtype and found.shape == wanted.shape
        assert torch.equal(found.reshape(-1).view(torch.uint8), wanted.reshape(-1).view(torch.uint8))
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key in wanted:
            assert_same(found[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    elif isinstance(wanted, float):
        assert found == wanted or (math.isnan(found) and math.isnan(wanted))
        assert math.copysign(1, found) == math.copysign(1, wanted) or math.isnan(wanted)
    else:
        assert found == wanted


@given(trees)
def test_any_tree_comes_back_through_json(tree: Any) -> None:
    plain, found = split_tree(tree)
    assert_same(join_tree(json.loads(json.dumps(plain, allow_nan=False)), found), tree)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(keys, trees, max_size=4))
def test_any_tree_comes_back_from_the_disk(tmp_path: Path, tree: dict[Any, Any]) -> None:
    assert_same(load_checkpoint(save_checkpoint(tmp_path, 1, tree)), tree)


def test_numbers_of_numpy_become_pythons() -> None:
    plain, _ = split_tree({"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True), "d": np.float64(2.0)})
    assert plain == {"a": 0.5, "b": 3, "c": True, "d": 2.0} and type(plain["d"]) is float


@pytest.mark.parametrize("value", [object(), {1, 2}, np.zeros(3), b"bytes", len])
def test_what_a_checkpoint_cannot_hold_is_named_by_its_path(value: object) -> None:
    with pytest.raises(CheckpointError, match="'callbacks/0/state'"):
        split_tree({"callbacks": [{"state": value}]})
