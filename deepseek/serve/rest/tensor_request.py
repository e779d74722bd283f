"""From the body of an infer request to arrays: the JSON part, the raw bytes behind it, and the outputs asked for.

Source: Open Inference Protocol (KServe v2) and Triton's binary tensor data extension, the raw binary request included.
Not here: the model (see `kserve`), and single tensors (see `tensor_data`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deepseek.errors import RequestError, did_you_mean
from deepseek.serve.rest.body import load_json, require_json
from deepseek.serve.rest.schema import checked
from deepseek.serve.rest.tensor_data import from_json, from_raw
from deepseek.serve.rest.tensor_forms import InferForm, InferInput, InferParameters
from deepseek.serve.tensor.datatypes import numpy_dtype
from deepseek.serve.tensor.sizes import check_shape

if TYPE_CHECKING:
    from deepseek.serve.tensor.datatypes import TensorSpec

_NOTHING = memoryview(b"")
JSON_LENGTH = b"inference-header-content-length"
"""The header that says where the JSON part of a body ends."""


class Wish(NamedTuple):
    """An output that is wanted, and whether as raw bytes."""

    spec: TensorSpec
    binary: bool


async def read_form(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> tuple[InferForm | None, memoryview]:
    """Return the JSON part as a form and the raw bytes behind it; no form where the whole body is one raw tensor.

    Without the length header the content type must be JSON; a client that names none is believed unless it is a
    browser (those always send Origin), whose pages may not reach a local server this way.
    Raises RequestError: 415 for another content type, 400 for a wrong length or form.
    """
    content_type: bytes | None = None
    length: int | None = None
    from_page = False
    for name, value in headers:
        if name == b"content-type":
            content_type = value
        elif name == JSON_LENGTH:
            length = _length(value, len(body))
        elif name == b"origin":
            from_page = True
    if length is None:
        if content_type != b"application/json" and (content_type is not None or from_page):
            require_json((content_type or b"").decode("latin-1"))
        return checked(InferForm, await load_json(body, finite=True)), _NOTHING
    raw = memoryview(body)[length:]
    if length == 0:
        return None, raw
    return checked(InferForm, await load_json(body[:length], finite=True)), raw


def read_inputs(form: InferForm, raw: memoryview) -> dict[str, np.ndarray]:
    """Return the inputs by name. Raises RequestError (400), naming the input, where data and shape don't fit."""
    inputs: dict[str, np.ndarray] = {}
    position = 0
    for given in form.inputs:
        if given.name in inputs:
            raise RequestError("an input is given twice", field="inputs", found=ascii(given.name)[:64])
        size = given.parameters.binary_data_size if given.parameters is not None else None
        if (size is None) == (given.data is None):
            raise _one_kind_of_data(given)
        check_shape(given.name, given.shape)
        if size is None:
            inputs[given.name] = from_json(given.name, given.datatype, given.shape, given.data)
        else:
            if size > len(raw) - position:
                raise _raw_length(f"{len(raw)} bytes", f"{position + size} or more, by binary_data_size")
            inputs[given.name] = from_raw(given.name, given.datatype, given.shape, raw[position : position + size])
            position += size
    if position != len(raw):
        raise _raw_length(f"{len(raw)} bytes", f"{position}, by binary_data_size")
    return inputs


def raw_input(specs: Sequence[TensorSpec], raw: memoryview) -> dict[str, np.ndarray]:
    """Return a body without JSON as the one row of the model's only input; at most one of its sizes may be free.

    Raises RequestError (400) where that is not possible.
    """
    if len(specs) != 1:
        raise RequestError("a body without JSON is for models with one input", found=len(specs), wanted="JSON before")
    spec = specs[0]
    if spec.datatype == "BYTES":
        value = np.empty(1, object)
        value[0] = bytes(raw)
        return {spec.name: value.reshape((1,) * len(spec.shape))}
    shape = [1, *spec.shape[1:]]
    free = [axis for axis, size in enumerate(shape) if size < 0]
    if len(free) > 1:
        raise RequestError(f"the shape of '{spec.name}' can't be told from bytes alone", wanted="JSON with the shape")
    if free:
        row = numpy_dtype(spec.datatype).itemsize * math.prod(size for size in shape if size >= 0)
        shape[free[0]] = len(raw) // row if row else 0
    return {spec.name: from_raw(spec.name, spec.datatype, shape, raw)}


def wishes(form: InferForm | None, outputs: Sequence[TensorSpec], parameters: InferParameters) -> list[Wish]:
    """Return the outputs to send, in the order asked for. Raises RequestError (400) for an unknown or repeated one."""
    binary = parameters.binary_data_output or form is None
    if form is None or not form.outputs:
        return [Wish(spec, binary) for spec in outputs]
    known = {spec.name: spec for spec in outputs}
    chosen: list[Wish] = []
    for wanted in form.outputs:
        spec = known.pop(wanted.name, None)
        if spec is None:
            shown = ascii(wanted.name)[1:-1][:64]
            twice = any(wish.spec.name == wanted.name for wish in chosen)
            problem = f"output '{shown}' is asked for twice" if twice else f"unknown output '{shown}'"
            raise RequestError(problem, field="outputs", fix=did_you_mean(shown, [spec.name for spec in outputs]))
        own = wanted.parameters.binary_data if wanted.parameters is not None else None
        chosen.append(Wish(spec, binary if own is None else own))
    return chosen


def _length(value: bytes, size: int) -> int:
    length = int(value) if value.isdigit() and len(value) < 20 else -1
    if not 0 <= length <= size:
        raise RequestError(
            "Inference-Header-Content-Length is not a length of this body",
            field="Inference-Header-Content-Length",
            found=ascii(value.decode("latin-1"))[:32],
            wanted=f"0 to {size}",
        )
    return length


def _one_kind_of_data(given: InferInput) -> RequestError:
    shown = ascii(given.name)[1:-1][:64]
    found = "neither" if given.data is None else "both"
    problem = f"input '{shown}': its data is missing or there twice"
    return RequestError(problem, field=shown, found=found, wanted="either 'data' or the parameter binary_data_size")


def _raw_length(found: str, wanted: str) -> RequestError:
    problem = "the raw bytes behind the JSON are not what the inputs say"
    return RequestError(problem, field="binary_data_size", found=found, wanted=wanted)
