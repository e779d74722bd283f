"""Tensors in gRPC messages: what is written is what is read, raw and typed, and wrong sizes are named."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.internal import encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deepseek.errors import RequestError
from deepseek.serve.rpc.messages import ModelInferRequest, ModelInferResponse
from deepseek.serve.rpc.tensors import AnswerWriter, read_inputs, varint
from deepseek.serve.tensor.datatypes import DATATYPES, TensorSpec, numpy_dtype

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)


def arrays(datatype):
    if datatype == "BYTES":
        return hnp.arrays(object, SHAPES, elements=st.binary(max_size=5), fill=st.nothing())
    return hnp.arrays(numpy_dtype(datatype), SHAPES)


TENSORS = st.sampled_from(DATATYPES).flatmap(lambda datatype: st.tuples(st.just(datatype), arrays(datatype)))


def as_request(answer):
    """Return an answer as a question: the two have the same form for tensors."""
    request = ModelInferRequest(raw_input_contents=answer.raw_output_contents)
    for output in answer.outputs:
        request.inputs.add().MergeFromString(output.SerializeToString())
    return request


@settings(max_examples=150, deadline=None)
@given(st.lists(TENSORS, min_size=1, max_size=3), st.booleans())
def test_what_is_written_is_read_back(tensors, raw):
    specs = [TensorSpec(f"t{index}", datatype, array.shape) for index, (datatype, array) in enumerate(tensors)]
    outputs = {spec.name: array for spec, (_, array) in zip(specs, tensors, strict=True)}
    writer = AnswerWriter()
    for _ in range(2):  # the second time from what is kept of the first
        answer = ModelInferResponse.FromString(writer.write(("m", "3"), specs, outputs, raw=raw))
        assert (answer.model_name, answer.model_version) == ("m", "3")
        raw_only = any(spec.datatype in ("FP16", "BF16") for spec in specs)
        assert bool(answer.raw_output_contents) == (raw or raw_only)
        found = read_inputs(as_request(answer))
        for spec in specs:
            assert found[spec.name].dtype == outputs[spec.name].dtype and found[spec.name].shape == spec.shape
            np.testing.assert_array_equal(found[spec.name], outputs[spec.name])


def test_answers_of_another_shape_or_version_do_not_get_what_was_kept():
    writer = AnswerWriter()
    for version in ("1", "2"):
        for rows in (1, 3):
            for datatype in ("FP32", "INT32"):
                specs = [TensorSpec("y", datatype, (-1, 2))]
                values = {"y": np.zeros((rows, 2), numpy_dtype(datatype))}
                answer = ModelInferResponse.FromString(writer.write(("m", version), specs, values, raw=True))
                (output,) = answer.outputs
                assert (answer.model_version, output.datatype, list(output.shape)) == (version, datatype, [rows, 2])


@given(st.integers(0, 2**64 - 1))
def test_numbers_are_written_as_protobuf_writes_them(number):
    assert varint(number) == encoder._VarintBytes(number)


def request(datatype, shape, raw=None, **contents):
    message = ModelInferRequest()
    tensor = message.inputs.add(name="x", datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    if raw is not None:
        message.raw_input_contents.append(raw)
    return message


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (ModelInferRequest(), "'inputs' has no fit length; found 0"),
        (request("FP32", [2], b"\0" * 7), "found 7 bytes; wanted 8 for FP32 [2]"),
        (request("FP32", [2], b"\0" * 8, fp32_contents=[1.0]), "both contents and raw contents"),
        (request("FP32", [2], fp64_contents=[1.0, 2.0]), "wrong list; found fp64_contents; wanted fp32_contents"),
        (request("FP32", [2], fp32_contents=[1.0]), "found 1 elements; wanted 2 for the shape [2]"),
        (request("FP16", [1], fp32_contents=[1.0]), "FP16 has no typed contents"),
        (request("INT8", [1], int_contents=[128]), "outside the datatype's range; wanted what int8 can hold"),
        (request("UINT16", [1], uint_contents=[65536]), "outside the datatype's range"),
        (request("FP32", [-1], b""), "this is no shape; found [-1]"),
        (request("FP32", [1] * 17, b"\0\0\0\0"), "found 17 dimensions"),
        (request("FP32", [2**40], b""), "it is too large"),
        (request("FP32", [0, 2**62, 2**62], b""), "it is too large"),
        (request("FP33", [1], b""), "unknown datatype"),
        (request("BYTES", [2], b"\1\0\0\0a"), "fewer BYTES elements"),
        (request("BYTES", [1], b"\xff\xff\xff\xffa"), "longer than what was sent"),
        (request("BOOL", [1], b"\2"), "neither 0 nor 1"),
    ],
)
def test_what_does_not_fit_is_named(message, told):
    with pytest.raises(RequestError) as caught:
        read_inputs(message)
    assert caught.value.status == 400
    from deepseek.serve.rest.wire import sentence

    assert told in sentence(caught.value)


def test_two_forms_of_one_size_in_memory_are_not_mixed_up():
    specs = [TensorSpec("x", "BF16", (-1,))]
    with pytest.raises(RequestError, match="wrong datatype"):
        read_inputs(request("UINT16", [1], b"\0\0"), specs)
    assert read_inputs(request("BF16", [1], b"\0\0"), specs)["x"].dtype == np.uint16


def test_an_array_may_be_written_to():
    array = read_inputs(request("FP32", [2], b"\0" * 8))["x"]
    assert array.flags.writeable and array.flags.aligned
