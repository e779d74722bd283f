"""Tensors of the open inference protocol in gRPC messages <-> numpy arrays.

Values come raw (`raw_input_contents`: little-endian, row-major; BYTES elements with a 4-byte length before each) or in
typed lists, never both, and answers go out in the form of the question. Every size is checked before an array is made.
Not here: whether the tensors fit the model (see `deepseek.serve.tensor.datatypes`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepseek.errors import RequestError
from deepseek.serve.rest.tensor_data import from_raw, to_raw
from deepseek.serve.rest.tensor_forms import MAX_TENSORS
from deepseek.serve.rpc import messages
from deepseek.serve.tensor.datatypes import TensorSpec, numpy_dtype
from deepseek.serve.tensor.sizes import MAX_DIMS, MAX_VALUES, check_shape, wrong_input

_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where the typed values of a datatype are; FP16 and BF16 come raw only."""
_PLAIN = {name: numpy_dtype(name) for name in _FIELDS.keys() - {"BOOL", "BYTES"}} if sys.byteorder == "little" else {}
"""Datatypes whose raw values lie in memory as numpy has them."""
_ALIKE = frozenset({"BF16", "UINT16"})
_WIDE = {"int_contents": np.int32, "uint_contents": np.uint32}


def read_inputs(request: Any, specs: Sequence[TensorSpec] = ()) -> dict[str, np.ndarray]:
    """Return the arrays of a ModelInferRequest by name. Raises RequestError (400) with the input named."""
    raw = request.raw_input_contents
    tensors = request.inputs
    count = len(tensors)
    if not 0 < count <= MAX_TENSORS:
        raise RequestError("'inputs' has no fit length", field="inputs", found=count, wanted=f"1 to {MAX_TENSORS}")
    if len(raw) not in (0, count):
        raise RequestError(
            "'raw_input_contents' does not go with 'inputs'",
            field="raw_input_contents",
            found=len(raw),
            wanted=f"one for each of the {count} inputs, in their order, or none",
        )
    arrays: dict[str, np.ndarray] = {}
    for index in range(count):
        tensor = tensors[index]
        name = tensor.name
        if name in arrays:
            raise RequestError("an input is given twice", field="inputs", found=ascii(name)[:64])
        if tensor.parameters:
            raise wrong_input(name, "it has parameters, and none is known", found=ascii(min(tensor.parameters))[:64])
        datatype = tensor.datatype
        if datatype in _ALIKE:
            _check_alike(name, datatype, specs)
        arrays[name] = _read(tensor, name, datatype, raw[index] if raw else None)
    return arrays


def _check_alike(name: str, datatype: str, specs: Sequence[TensorSpec]) -> None:
    """Raise RequestError (400) for BF16 where UINT16 is due or the other way: as arrays they are the same."""
    for spec in specs:
        if spec.name == name and spec.datatype != datatype:
            problem = f"'{name}' has the wrong datatype"
            raise RequestError(problem, field=name, found=datatype, wanted=spec.datatype)


def is_raw(request: Any) -> bool:
    """Return whether a question came raw."""
    return len(request.raw_input_contents) > 0


def _read(tensor: Any, name: str, datatype: str, raw: bytes | None) -> np.ndarray:
    shape = list(tensor.shape)
    if len(shape) > MAX_DIMS or min(shape, default=1) <= 0 or math.prod(shape) >= MAX_VALUES:
        check_shape(name, shape)
    if raw is None:
        return _read_typed(tensor, math.prod(shape)).reshape(shape)
    if tensor.HasField("contents"):
        raise wrong_input(name, "it has both contents and raw contents", fix="send one of them")
    dtype = _PLAIN.get(datatype)
    if dtype is not None and len(raw) == math.prod(shape) * dtype.itemsize:
        return np.frombuffer(bytearray(raw), dtype).reshape(shape)  # an array of its own, that may be written to
    return from_raw(name, datatype, shape, memoryview(raw))


def _read_typed(tensor: Any, count: int) -> np.ndarray:
    """Return the values of the typed list that belongs to the datatype, flat."""
    name, datatype = tensor.name, tensor.datatype
    dtype = numpy_dtype(datatype)
    field = _FIELDS.get(datatype)
    if field is None:
        raise wrong_input(name, f"{datatype} has no typed contents", fix="send it in raw_input_contents, or as FP32")
    for given, _ in tensor.contents.ListFields():
        if given.name != field:
            raise wrong_input(name, "its values are in the wrong list", found=given.name, wanted=field)
    values = getattr(tensor.contents, field)
    if len(values) != count:
        raise wrong_input(
            name,
            "the contents do not fill 'shape'",
            found=f"{len(values)} elements",
            wanted=f"{count} for the shape {list(tensor.shape)}",
        )
    if datatype == "BYTES":
        elements = np.empty(count, dtype)
        elements[:] = list(values)
        return elements
    array = np.fromiter(values, _WIDE.get(field, dtype), count)
    narrow = array.astype(dtype, copy=False)
    if (narrow != array).any() and dtype.kind in "iu":
        raise wrong_input(
            name, "the contents have a number outside the datatype's range", wanted=f"what {dtype} can hold"
        )
    return narrow


class AnswerWriter:
    """Writes a model's answers. What is alike in raw answers of one shape is put into bytes once.

    Parts of a serialized message one after the other are the message with all of them: protobuf's rule for merging.
    """

    _KEPT = 64

    def __init__(self) -> None:
        self._heads: dict[Any, bytes] = {}

    def write(
        self, model: tuple[str, str], specs: Sequence[TensorSpec], outputs: Mapping[str, np.ndarray], *, raw: bool
    ) -> bytes:
        """Return a serialized ModelInferResponse of `model` (name and version), without the request's id."""
        if not raw and all(spec.datatype in _FIELDS for spec in specs):
            return _head(model, specs, outputs, typed=True)
        key = (model, tuple(specs), *[outputs[spec.name].shape for spec in specs])
        head = self._heads.get(key)
        if head is None:
            head = _head(model, specs, outputs, typed=False)
            if len(self._heads) >= self._KEPT:
                self._heads.clear()
            self._heads[key] = head
        parts = [head]
        for spec in specs:
            value = to_raw(outputs[spec.name])
            parts += (_RAW_TAG, varint(len(value)), value)
        return b"".join(parts)


_RAW_TAG = bytes([6 << 3 | 2])  # of ModelInferResponse.raw_output_contents
"""What stands before an element of raw_output_contents: the field's number and "a length follows"."""


def varint(number: int) -> bytes:
    """Return a number in protobuf's form: seven bits a byte, lowest first, the eighth says that more follow."""
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _head(
    model: tuple[str, str], specs: Sequence[TensorSpec], outputs: Mapping[str, np.ndarray], *, typed: bool
) -> bytes:
    """Return model, names and shapes, with the values where they are `typed`."""
    answer = messages.ModelInferResponse(model_name=model[0], model_version=model[1])
    for spec in specs:
        values = outputs[spec.name]
        tensor = answer.outputs.add(name=spec.name, datatype=spec.datatype, shape=values.shape)
        if typed:
            flat = values.ravel().tolist()
            if spec.datatype == "BYTES":
                flat = [item if isinstance(item, bytes) else str(item).encode("utf-8") for item in flat]
            getattr(tensor.contents, _FIELDS[spec.datatype]).extend(flat)
    return answer.SerializeToString()  # type: ignore[no-any-return]
