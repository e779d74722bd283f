"""The protocol's number formats, and what a signature takes and refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepseek.errors import ModelError, RequestError
from deepseek.serve.tensor.datatypes import DATATYPES, ModelSignature, TensorSpec, datatype_of, numpy_dtype

TEXT = ModelSignature(
    (TensorSpec("input_ids", "INT64", (-1, -1)), TensorSpec("attention_mask", "INT64", (-1, -1))),
    (TensorSpec("logits", "FP32", (-1, 2)),),
    axes={"input_ids": ("batch", "time"), "attention_mask": ("batch", "time")},
    limits={"time": 8},
    ranges={"input_ids": (0, 100)},
)


def ids(rows=2, time=3, value=1):
    return np.full((rows, time), value, np.int64)


def test_every_torch_format_that_numpy_has_keeps_its_size():
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bfloat16"):
        dtype = getattr(torch, name)
        assert numpy_dtype(datatype_of(dtype)).itemsize == dtype.itemsize


def test_the_names_are_those_of_the_protocol():
    known = "BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64 BF16 BYTES"
    assert sorted(DATATYPES) == sorted(known.split())


@pytest.mark.parametrize("name", ["FP8", "fp32", "", "FP32 ", None, 7])
def test_an_unknown_datatype_is_the_clients_error(name):
    with pytest.raises(RequestError) as caught:
        numpy_dtype(name)
    assert caught.value.status == 400


def test_a_format_without_a_name_is_told():
    with pytest.raises(ModelError, match="complex64"):
        datatype_of(torch.complex64)


def test_a_request_that_fits_is_counted():
    assert TEXT.check({"input_ids": ids(), "attention_mask": ids()}) == 2


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"input_ids": ids()}, "inputs"),
        ({"input_ids": ids(), "attention_mask": ids(), "more": ids()}, "inputs"),
        ({"input_ids": ids(), "attention_mak": ids()}, "inputs"),
        ({"input_ids": ids().astype(np.int32), "attention_mask": ids()}, "input_ids"),
        ({"input_ids": ids(), "attention_mask": ids().astype(np.float32)}, "attention_mask"),
        ({"input_ids": ids()[0], "attention_mask": ids()}, "input_ids"),
        ({"input_ids": ids(0), "attention_mask": ids(0)}, "input_ids"),
        ({"input_ids": ids(2, 0), "attention_mask": ids(2, 0)}, "input_ids"),
        ({"input_ids": ids(2, 3), "attention_mask": ids(3, 3)}, "attention_mask"),
        ({"input_ids": ids(2, 3), "attention_mask": ids(2, 4)}, "attention_mask"),
        ({"input_ids": ids(1, 9), "attention_mask": ids(1, 9)}, "input_ids"),
        ({"input_ids": ids(value=100), "attention_mask": ids()}, "input_ids"),
        ({"input_ids": ids(value=-1), "attention_mask": ids()}, "input_ids"),
        ({"input_ids": ids(value=2**63 - 1), "attention_mask": ids()}, "input_ids"),
    ],
)
def test_a_request_that_does_not_fit_names_the_input(inputs, field):
    with pytest.raises(RequestError) as caught:
        TEXT.check(inputs)
    assert (caught.value.status, caught.value.field) == (400, field)


def test_columns_have_ranges_of_their_own():
    table = ModelSignature((TensorSpec("categorical", "INT64", (-1, 2)),), (), ranges={"categorical": (0, (3, 5))})
    assert table.check({"categorical": np.array([[2, 4]])}) == 1
    with pytest.raises(RequestError, match="found:  3"):
        table.check({"categorical": np.array([[2, 4], [3, 4]])})
