"""Tensors as instances: named arrays as nested lists, one row without the batch axis. What every model takes.

Used where a bundle has no pipeline, or one that begins with what no file holds. What an array may be follows from the
model's own example: its names, types and number of axes, and from its config what whole numbers stand for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepseek.errors import RequestError, did_you_mean
from deepseek.serve.forms.checks import TOO_LARGE, number_of, object_schema, shown, type_name, whole_of
from deepseek.serve.forms.form import FormLimits, Schema, Taken, Takes

_WIDEST = 2**31 - 1
_NUMBERS = frozenset({int, float})
_LARGEST = float(np.finfo(np.float32).max)
_INNER = ("decoder_input_ids", "memory")  # what the task itself makes


class TensorTaker:
    """The model's inputs by name. A model of one input takes its array bare, too."""

    takes: Takes = "tensors"

    def __init__(self, model: nn.Module, example: Mapping[str, Tensor], limits: FormLimits) -> None:
        self._example = {name: value for name, value in example.items() if name not in _INNER}
        self._names = list(self._example)
        self._optional = {"attention_mask", "token_type_ids", "lengths"} & self._example.keys()
        self._limits = limits
        plain = all(value.dim() == 2 and value.dtype == torch.float32 for value in self._example.values())
        self._flat_names = self._example.keys() if plain else None
        self._bounds = {name: _highest(model, name) for name in self._example}
        arrays = {name: _array_schema(value.dim() - 1, value) for name, value in self._example.items()}
        self.schema: Schema = object_schema(arrays, [name for name in arrays if name not in self._optional])

    def take(self, body: Any) -> Taken:
        """Return the batch of one row. Raises RequestError for names, shapes or numbers that do not fit."""
        names = self._names
        if isinstance(body, list | int | float) and not isinstance(body, bool) and len(names) == 1:
            body = {names[0]: body}
        if not isinstance(body, Mapping):
            found, wanted = type_name(body), ", ".join(names)
            raise RequestError("'tensors' is an object of arrays", field="tensors", found=found, wanted=wanted)
        for key in body:
            if key not in names:
                fix = did_you_mean(shown(key), names)
                raise RequestError("there is no such tensor", field=shown(key), found=shown(key), fix=fix)
        for name in names:
            if name not in body and name not in self._optional:
                wanted = ", ".join(names)
                raise RequestError(
                    f"the tensor '{name}' is missing",
                    field=name,
                    found=[shown(key) for key in list(body)[:8]],
                    wanted=wanted,
                )
        room = self._limits.numbers
        batch: dict[str, Tensor] = {}
        for name in names:
            if name in body:
                batch[name] = self._tensor(name, body[name], room)
                room -= batch[name].numel()
        return Taken(batch, {})

    def arrays(self, body: Any) -> dict[str, NDArray[Any]] | None:
        """Return what `take` does as arrays where `body` is nothing but lists of finite floats; None: ask `take`."""
        if type(body) is not dict or body.keys() != self._flat_names:
            return None
        found = {}
        for name, value in body.items():
            numbers = _floats(value) if type(value) is list else None
            if numbers is None or len(numbers) > self._limits.numbers:
                return None
            found[name] = numbers.reshape(1, -1)
        return found

    def example(self) -> Any:
        """Return the model's own example."""
        return {name: value[0].tolist() for name, value in self._example.items()}

    def probes(self) -> Sequence[Any]:
        """Return none: the sizes are the client's, and the signature says which fit."""
        return []

    def _tensor(self, name: str, value: Any, room: int) -> Tensor:
        example = self._example[name]
        shape: list[int] = []
        inner = value
        for _ in range(example.dim() - 1):
            if not isinstance(inner, list) or not inner:
                raise self._misshapen(name, value)
            shape.append(len(inner))
            inner = inner[0]
        if math.prod(shape) > room:
            found, wanted = f"{math.prod(shape)} numbers", f"at most {self._limits.numbers}"
            raise RequestError(f"'{name}' is too large", field=name, status=TOO_LARGE, found=found, wanted=wanted)
        flat = value if len(shape) == 1 else self._flat(name, value, shape)
        quick = _floats(flat) if example.dtype == torch.float32 else None
        if quick is not None:
            return torch.from_numpy(quick.reshape(1, *shape))
        if example.dtype.is_floating_point:
            numbers: list[Any] = [number_of(one, name) for one in flat]
        else:
            highest = self._bounds[name]
            numbers = [_whole(one, name, highest[place % len(highest)]) for place, one in enumerate(flat)]
        return torch.tensor(numbers, dtype=example.dtype).reshape(1, *shape)

    def _flat(self, name: str, value: Any, shape: list[int]) -> list[Any]:
        """Return the numbers in order. Raises RequestError for lists of different lengths."""
        level = [value]
        for side in shape:
            if any(not isinstance(one, list) or len(one) != side for one in level):
                raise self._misshapen(name, value)
            level = [inner for one in level for inner in one]
        return level

    def _misshapen(self, name: str, value: Any) -> RequestError:
        wanted = f"lists of one length at each level, {self._example[name].dim() - 1} levels, none empty"
        return RequestError(f"'{name}' has another shape", field=name, found=type_name(value), wanted=wanted)


def _floats(flat: list[Any]) -> NDArray[np.float32] | None:
    """Return finite numbers as an array; None for what must be looked at one by one."""
    if not flat or not _NUMBERS.issuperset(map(type, flat)) or not math.isfinite(sum(flat)):
        return None
    if not -_LARGEST <= min(flat) <= max(flat) <= _LARGEST:
        return None
    return np.array(flat, np.float32)


def _whole(value: object, name: str, highest: int) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return whole_of(value, name, 0, highest)


def _highest(model: nn.Module, name: str) -> list[int]:
    """Return the largest whole number that an input may hold, by what it stands for; of a table one for each column."""
    config: Any = getattr(model, "config", None)
    words = getattr(config, "vocab_size", None) or getattr(getattr(config, "text", None), "vocab_size", None)
    most: Mapping[str, int | None] = {
        "input_ids": words,
        "token_type_ids": getattr(config, "token_types", None),
        "attention_mask": 2,
        "labels": getattr(config, "num_classes", None),
        "atomic_numbers": (getattr(config, "max_atomic_number", None) or -1) + 1 or None,
    }
    if name == "categorical" and getattr(config, "cardinalities", None):
        return [size - 1 for size in config.cardinalities]
    bound = most.get(name)
    return [bound - 1 if bound else _WIDEST]


def _array_schema(axes: int, value: Tensor) -> Schema:
    schema: Schema = {"type": "number" if value.dtype.is_floating_point else "integer"}
    for _ in range(axes):
        schema = {"type": "array", "items": schema, "minItems": 1}
    return schema
