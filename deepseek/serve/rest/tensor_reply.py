"""From a model's outputs to the body of an infer answer: JSON, with raw bytes behind it where they were asked for.

Source: Open Inference Protocol (KServe v2) and Triton's binary tensor data extension. Not here: HTTP (see `reply`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deepseek.serve.rest.json_bytes import dump_arrays, dump_numbers
from deepseek.serve.rest.tensor_data import check_finite, to_json, to_raw
from deepseek.serve.rest.tensor_request import Wish

_LENGTH = struct.Struct("<q")


class InferBody(NamedTuple):
    """The body of an answer; `json_length` is the length of its JSON part where raw bytes follow, else None."""

    body: bytes
    json_length: int | None

    def pack(self) -> bytes:
        """Return both as bytes, for the cache."""
        return _LENGTH.pack(-1 if self.json_length is None else self.json_length) + self.body

    @classmethod
    def unpack(cls, packed: bytes) -> InferBody | None:
        """Return what `pack` made; None for anything else."""
        if len(packed) < _LENGTH.size:
            return None
        length = _LENGTH.unpack_from(packed)[0]
        return cls(packed[_LENGTH.size :], None if length < 0 else length)


def infer_body(
    model: str, version: str, request_id: str | None, wishes: Sequence[Wish], outputs: Mapping[str, np.ndarray]
) -> InferBody:
    """Return the answer. Raises RequestError (400) where JSON can't say an output (NaN, BF16)."""
    raw: list[bytes] = []
    tensors: list[dict[str, Any]] = []
    for spec, binary in wishes:
        value = outputs[spec.name]
        tensor: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": list(value.shape)}
        if binary:
            raw.append(to_raw(value))
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            tensor["data"] = to_json(spec.name, spec.datatype, value)
        tensors.append(tensor)
    answer = {"model_name": model, "model_version": version, "outputs": tensors}
    head = dump_numbers(answer)
    if head is None:
        for spec, binary in wishes:
            if not binary:
                check_finite(spec.name, outputs[spec.name])
        head = dump_arrays(answer)  # a text had the word
    whole = InferBody(b"".join([head, *raw]), len(head)) if raw else InferBody(head, None)
    return with_id(whole, request_id)


def with_id(answer: InferBody, request_id: str | None) -> InferBody:
    """Return an answer that was made without an id with one."""
    if request_id is None:
        return answer
    tag = b'{"id":' + dump_arrays(request_id) + b","
    length = None if answer.json_length is None else answer.json_length + len(tag) - 1
    return InferBody(tag + answer.body[1:], length)
