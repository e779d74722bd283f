"""The form of a model that has nothing but a signature: named tensors as nested lists, one row without the batch axis.

For models given in memory. Those from bundles have forms that fit their task (see `deepseek.serve.forms`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from deepseek.errors import RequestError, did_you_mean
from deepseek.serve.rest.tensor_data import check_finite, from_json, to_json

if TYPE_CHECKING:
    from torch import nn

    from deepseek.serve.forms.form import Gives, Takes
    from deepseek.serve.tensor.datatypes import ModelSignature, TensorSpec

_KINDS = {"BOOL": "boolean", "BYTES": "string", "FP16": "number", "FP32": "number", "FP64": "number", "BF16": "number"}


class SignatureForm:
    """Tensors in, tensors out. A model of one input takes its array bare, too."""

    takes: Takes = "tensors"
    gives: Gives = "tensors"
    needs_model = False

    def __init__(self, signature: ModelSignature) -> None:
        self._inputs = {spec.name: spec for spec in signature.inputs}
        self._outputs = {spec.name: spec for spec in signature.outputs}
        arrays = {spec.name: _schema(spec) for spec in signature.inputs}
        whole = _object(arrays)
        self.request_schema: dict[str, Any] = (
            {"anyOf": [whole, next(iter(arrays.values()))]} if len(arrays) == 1 else whole
        )
        self.answer_schema: dict[str, Any] = _object({spec.name: _schema(spec) for spec in signature.outputs})

    def to_inputs(self, instance: Any) -> dict[str, np.ndarray]:
        """Return one row of every input. Raises RequestError (400) with the input named."""
        if type(instance) is not dict:
            if len(self._inputs) != 1:
                wanted = ", ".join(self._inputs)
                raise RequestError("an instance is an object of arrays", found=type(instance).__name__, wanted=wanted)
            instance = {name: instance for name in self._inputs}
        if instance.keys() != self._inputs.keys():
            raise self._wrong_names(instance)
        return {name: _row(spec, instance[name]) for name, spec in self._inputs.items()}

    def to_answer(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the outputs of one row as nested lists. Raises RequestError (400) for what JSON can't say."""
        answer: dict[str, Any] = {}
        for name, spec in self._outputs.items():
            flat = to_json(name, spec.datatype, outputs[name])
            check_finite(name, outputs[name])
            answer[name] = np.asarray(flat, outputs[name].dtype).reshape(outputs[name].shape[1:])[()]
        return answer

    def run(self, model: nn.Module, instance: Any) -> dict[str, Any]:
        """Refuse: a signature says nothing of how a model would answer in several calls."""
        raise RequestError("this model answers through its engine only", status=501)

    def example(self) -> Any:
        """Return an instance of zeros, free sizes 1."""
        return {
            name: np.zeros([max(size, 1) for size in spec.shape[1:]], int).tolist()
            for name, spec in self._inputs.items()
        }

    def _wrong_names(self, instance: Mapping[str, Any]) -> RequestError:
        for name in instance:
            if name not in self._inputs:
                shown = ascii(name)[1:-1][:64]
                return RequestError(f"unknown input '{shown}'", field=shown, fix=did_you_mean(shown, self._inputs))
        missing = min(self._inputs.keys() - instance.keys())
        return RequestError(f"input '{missing}' is missing", field=missing, wanted=", ".join(self._inputs))


def _row(spec: TensorSpec, value: Any) -> np.ndarray:
    shape = [1]
    inner = value
    for _ in spec.shape[1:]:
        if type(inner) is not list:
            break
        shape.append(len(inner))
        inner = inner[0] if inner else None
    wanted = list(spec.shape[1:])
    if len(shape) != len(spec.shape) or any(a not in (-1, b) for a, b in zip(wanted, shape[1:], strict=True)):
        raise RequestError(f"'{spec.name}' has the wrong shape", field=spec.name, found=shape[1:], wanted=wanted)
    return from_json(spec.name, spec.datatype, shape, [value])


def _schema(spec: TensorSpec) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": _KINDS.get(spec.datatype, "integer")}
    for size in reversed(spec.shape[1:]):
        schema = {"type": "array", "items": schema} | (
            {"minItems": size, "maxItems": size} if size >= 0 else {"minItems": 1}
        )
    return schema


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
