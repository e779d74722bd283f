"""Putting rows together and taking answers apart: whole, in order, cut to each request's own length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.serve.tensor.batch import Joiner, bucket
from deepseek.serve.tensor.datatypes import ModelSignature, TensorSpec
from deepseek.serve.tensor.derived import Derived, derived_axes

FIXED = ModelSignature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),))
TEXT = ModelSignature(
    (TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("ids_mask", "INT64", (-1, -1))),
    (TensorSpec("each", "INT64", (-1, -1)), TensorSpec("total", "INT64", (-1, 1))),
    axes={"ids": ("batch", "time"), "ids_mask": ("batch", "time")},
    output_axes={"each": ("batch", "time"), "total": ("batch", None)},
)


def run(inputs):
    """Answer each place and each row; what the mask hides counts for nothing."""
    seen = inputs["ids"] * inputs["ids_mask"]
    return {"each": seen * 2, "total": seen.sum(1, keepdims=True)}


def request(rows, time, seed):
    rng = np.random.default_rng(seed)
    return {"ids": rng.integers(1, 50, (rows, time)), "ids_mask": np.ones((rows, time), np.int64)}


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(0, 99)), min_size=1, max_size=6))
def test_padded_requests_of_one_run_are_answered_as_alone(shapes):
    joiner = Joiner(TEXT, {"time"})
    requests = [request(*shape) for shape in shapes]
    found = joiner.split(run(joiner.join(requests)), requests)
    for one, answer in zip(requests, found, strict=True):
        for name, value in run(one).items():
            np.testing.assert_array_equal(answer[name], value)


def test_only_lengths_of_one_bucket_share_a_run():
    joiner = Joiner(TEXT, {"time"})
    keys = {time: joiner.key(request(1, time, 0)) for time in (1, 8, 9, 12, 13, 16)}
    assert keys[1] == keys[8] != keys[9] == keys[12] != keys[13] == keys[16]
    assert joiner.key(request(5, 9, 0)) == keys[9]


def test_without_padding_only_equal_shapes_share_a_run():
    joiner = Joiner(TEXT)
    assert joiner.key(request(1, 5, 0)) == joiner.key(request(3, 5, 1)) != joiner.key(request(1, 6, 0))


def test_a_model_of_fixed_shape_has_one_key():
    assert Joiner(FIXED).key({"x": np.zeros((2, 3), np.float32)}) == ()


@given(st.integers(1, 1 << 20))
def test_a_bucket_holds_its_length_and_wastes_less_than_half(size):
    assert size <= bucket(size) <= max(8, size * 3 // 2)
    assert bucket(bucket(size)) == bucket(size)


@pytest.mark.parametrize(("offset", "stride"), [(0, 1), (-1, 2), (3, 4), (5, 8), (0, 9)])
def test_a_size_that_follows_from_another_is_found_and_cut(offset, stride):
    def run(inputs):
        rows, size = inputs["x"].shape[:2]
        return {"y": np.ones((rows, (size - offset) // stride, 3)), "z": np.zeros((rows, 5)), "w": np.zeros((rows, 7))}

    axes = {"y": ("batch", "y_1", None), "z": ("batch", "z_1"), "w": ("batch", None)}
    found = derived_axes(run, axes, "frames", lambda size: {"x": np.zeros((1, size, 4))}, (1, 67))
    assert found == {"y_1": Derived("frames", offset, stride)}  # z_1 never changes
    signature = ModelSignature(
        (TensorSpec("x", "FP64", (-1, -1, 4)),), (), {"x": ("batch", "frames", None)}, {}, axes, derived=found
    )
    joiner, requests = (
        Joiner(signature, {"frames"}),
        [{"x": np.zeros((rows, size, 4))} for rows, size in ((1, 30), (2, 24))],
    )
    for request, part in zip(requests, joiner.split(run(joiner.join(requests)), requests), strict=True):
        assert part["y"].shape == run(request)["y"].shape


def test_a_size_of_its_own_follows_from_nothing():
    sizes = iter(range(100, 200))
    found = derived_axes(
        lambda inputs: {"y": np.ones((1, next(sizes)))}, {"y": ("batch", "y_1")}, "t", lambda size: {}, (1, 40)
    )
    assert found == {}


def test_no_size_below_the_least_is_tried():
    def run(inputs):
        size = inputs["x"].shape[1]
        if size < 31:
            raise RuntimeError("too short")
        return {"y": np.ones((1, size // 2))}

    found = derived_axes(run, {"y": ("batch", "y_1")}, "t", lambda size: {"x": np.zeros((1, size))}, (31, 64))
    assert found == {"y_1": Derived("t", 0, 2)}
