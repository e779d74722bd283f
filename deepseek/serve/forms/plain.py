"""Answers without a natural form: the task's prediction, or the model's outputs, as named nested lists."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.export.signature import output_tensors, single_output_name
from deepseek.serve.forms.checks import json_number, object_schema
from deepseek.serve.forms.form import Gives, Schema
from deepseek.tasks.inputs import answer_to


class PlainTask:
    """In the place of a task that has no natural answer: its prediction is what the model gives, by name."""

    name = "plain"

    def predict(self, model: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the model's outputs by the names of its signature."""
        with torch.inference_mode():
            return output_tensors(answer_to(model, inputs), single_output_name(model))


class TensorGiver:
    """A prediction as nested lists of one row, by name; null where a number is not finite."""

    gives: Gives = "tensors"
    options: Mapping[str, Schema] = {}

    def __init__(self) -> None:
        self.schema: Schema = object_schema({"tensors": {"type": "object"}})

    def give(self, prediction: Any, about: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of a tensor, or of tensors by name."""
        named = dict(prediction) if isinstance(prediction, Mapping) else {"output": prediction}
        return {"tensors": {name: _row(value) for name, value in named.items()}}


def _row(value: Any) -> Any:
    if isinstance(value, Tensor):
        listed = value.float().cpu() if value.is_floating_point() else value.cpu()
        return _finite(listed[0].tolist() if listed.dim() else listed.tolist())
    return _finite(value[0])


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return json_number(value) if isinstance(value, float) and not math.isfinite(value) else value
