"""Putting rows together and taking answers apart: whole, in order, cut to each request's own length."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deepseek.serve.tensor.batch import Joiner, bucket
from deepseek.serve.tensor.datatypes import ModelSignature, TensorSpec

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
