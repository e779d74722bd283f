"""Tensors on the wire: JSON lists and raw bytes to arrays and back, with every length checked before a copy is made.

Source: Open Inference Protocol (KServe v2), "Tensor Data", and Triton's binary tensor data extension: little endian,
row-major, BYTES as a 4-byte length before each element, BF16 only as raw bytes.
Not here: whether the tensors fit the model (see `ModelSignature.check`).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import struct
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from deepseek.errors import RequestError
from deepseek.serve.tensor.datatypes import numpy_dtype
from deepseek.serve.tensor.sizes import wrong_input

_LENGTH = struct.Struct("<I")
_LARGEST = {2: 65504.0, 4: float(np.finfo(np.float32).max), 8: sys.float_info.max}
_NUMBERS = frozenset({int, float})
_KINDS: dict[str, tuple[frozenset[type], str]] = {
    "f": (_NUMBERS, "numbers"),
    "i": (frozenset({int}), "whole numbers"),
    "u": (frozenset({int}), "whole numbers of 0 or more"),
    "b": (frozenset({bool}), "true or false"),
    "O": (frozenset({str}), "texts"),
}


def from_json(name: str, datatype: str, shape: Sequence[int], data: Any) -> np.ndarray:
    """Return the `data` of a JSON tensor, flat or nested row by row, as an array of `shape`.

    Raises RequestError (400) where kinds, ranges, nesting or the number of elements don't fit.
    """
    dtype = numpy_dtype(datatype)
    if datatype == "BF16":
        raise wrong_input(name, "BF16 has no form in JSON", fix="send it as binary data, or send FP32")
    if type(data) is not list:
        raise wrong_input(name, "'data' is not a list", found=type(data).__name__, wanted="a list of elements")
    flat, nesting = _flattened(name, data)
    count = math.prod(shape)
    if len(flat) != count or (len(nesting) > 1 and nesting != list(shape)):
        raise wrong_input(
            name,
            "'data' does not fill 'shape'",
            found=f"{len(flat)} elements" if len(flat) != count else f"lists nested as {nesting}",
            wanted=f"{count} for the shape {list(shape)}"[:96],
        )
    return _array(name, dtype, flat).reshape(tuple(shape))


def from_raw(name: str, datatype: str, shape: Sequence[int], raw: memoryview) -> np.ndarray:
    """Return raw bytes as an array of `shape`. Raises RequestError (400) where the length is not that of the shape."""
    dtype = numpy_dtype(datatype)
    count = math.prod(shape)
    if datatype == "BYTES":
        return _objects(_elements(name, raw, count), dtype).reshape(tuple(shape))
    if len(raw) != count * dtype.itemsize:
        raise wrong_input(
            name,
            "the raw bytes do not fill 'shape'",
            found=f"{len(raw)} bytes",
            wanted=f"{count * dtype.itemsize} for {datatype} {list(shape)}"[:96],
        )
    if datatype == "BOOL" and any(byte > 1 for byte in set(raw)):
        raise wrong_input(name, "a raw BOOL is neither 0 nor 1")
    if not count:
        return np.empty(tuple(shape), dtype)
    little = np.frombuffer(raw, dtype.newbyteorder("<"))
    return little.astype(dtype).reshape(tuple(shape))  # a copy: aligned, writable, and the body can go


def to_raw(value: np.ndarray) -> bytes:
    """Return an array as raw bytes."""
    if value.dtype == object:
        parts = [item if isinstance(item, bytes) else str(item).encode("utf-8") for item in value.ravel()]
        return b"".join(_LENGTH.pack(len(part)) + part for part in parts)
    little = value if sys.byteorder == "little" else value.astype(value.dtype.newbyteorder("<"))
    return little.tobytes()


def to_json(name: str, datatype: str, value: np.ndarray) -> np.ndarray | list[Any]:
    """Return the flat elements of an answer for JSON: an array of finite numbers or a list of texts.

    Raises RequestError (400) for what JSON can't say: BF16, bytes that are no UTF-8; see also `check_finite`.
    """
    if value.dtype.kind == "O":
        return [_text(name, item) for item in value.ravel()]
    if datatype == "BF16":
        raise _unsayable(name, "BF16 has no form in JSON")
    return value.reshape(-1)


def check_finite(name: str, value: np.ndarray) -> None:
    """Raise RequestError (400) for an output with NaN or infinity, which JSON can't say."""
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise _unsayable(name, "the answer has NaN or infinite numbers, which JSON can't say")


def _flattened(name: str, data: list[Any]) -> tuple[list[Any], list[int]]:
    """Return the elements and the lengths of the lists on each level. The body's depth is bounded already."""
    nesting = [len(data)]
    while data and type(data[0]) is list:
        lengths = {len(item) if type(item) is list else -1 for item in data}
        if len(lengths) > 1 or -1 in lengths:
            raise wrong_input(name, "'data' is ragged", wanted="lists of one length on each level")
        nesting.append(lengths.pop())
        data = list(itertools.chain.from_iterable(data))
    return data, nesting


def _array(name: str, dtype: np.dtype[Any], flat: list[Any]) -> np.ndarray:
    kinds, wanted = _KINDS[dtype.kind]
    strange = set(map(type, flat)) - kinds
    if strange:
        found = ", ".join(sorted("null" if kind is type(None) else kind.__name__ for kind in strange))
        raise wrong_input(name, "'data' has elements of another kind", found=found, wanted=wanted)
    if dtype.kind == "O":
        return _objects([item.encode("utf-8") for item in flat], dtype)
    largest = _LARGEST.get(dtype.itemsize, 0.0) if dtype.kind == "f" and flat else math.inf
    if dtype.kind != "f" or (-largest <= min(flat, default=0) and max(flat, default=0) <= largest):
        with contextlib.suppress(OverflowError):  # numpy's word for a whole number beyond the datatype
            return np.array(flat, dtype)
    raise wrong_input(name, "'data' has a number outside the datatype's range", wanted=f"what {dtype.name} can hold")


def _objects(items: list[bytes], dtype: np.dtype[Any]) -> np.ndarray:
    values = np.empty(len(items), dtype)
    values[:] = items
    return values


def _elements(name: str, raw: memoryview, count: int) -> list[bytes]:
    """Return the elements of a BYTES tensor. Raises RequestError where lengths and bytes don't add up."""
    found: list[bytes] = []
    position = 0
    while position < len(raw):
        start = position + _LENGTH.size
        end = start + _LENGTH.unpack_from(raw, position)[0] if start <= len(raw) else start
        if end > len(raw):
            raise wrong_input(name, "a BYTES element is longer than what was sent", found=f"element {len(found)}")
        if len(found) == count:
            raise wrong_input(name, "there are more BYTES elements than 'shape' says", wanted=f"{count} elements")
        found.append(bytes(raw[start:end]))
        position = end
    if len(found) != count:
        raise wrong_input(name, "there are fewer BYTES elements than 'shape' says", found=len(found), wanted=count)
    return found


def _text(name: str, item: Any) -> str:
    try:
        return item.decode("utf-8") if isinstance(item, bytes) else str(item)
    except UnicodeDecodeError:
        raise _unsayable(name, "the answer has bytes that are no UTF-8") from None


def _unsayable(name: str, problem: str) -> RequestError:
    return RequestError(f"output '{name}': {problem}", field=name, fix='ask for it with "binary_data": true')
