"""Calls a model with those tensors of a batch that it takes, by the names of its forward method."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from deepseek.errors import DataError
from deepseek.tasks.task import Batch


class InputNames(NamedTuple):
    """What a forward method can be called with."""

    known: frozenset[str]
    required: frozenset[str]
    takes_any: bool
    """It takes every name (`**kwargs`), as wrappers do."""


_names: dict[type[nn.Module], InputNames] = {}


def input_names(kind: type[nn.Module]) -> InputNames:
    """Return the names of the inputs of a model class; asked for once."""
    if kind not in _names:
        parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        _names[kind] = InputNames(
            frozenset(p.name for p in named),
            frozenset(p.name for p in named if p.default is p.empty),
            any(p.kind is p.VAR_KEYWORD for p in parameters),
        )
    return _names[kind]


def call_model(model: nn.Module, batch: Batch, not_inputs: tuple[str, ...] = ("labels",)) -> Any:
    """Return the model's answer to the tensors of `batch` that it has names for, those in `not_inputs` left out.

    A model with other names is called with the batch's only tensor, where there is but one. Raises DataError where
    the batch lacks what the model needs.
    """
    names = input_names(type(model))
    rest = {key: value for key, value in batch.items() if key not in not_inputs}
    inputs = rest if names.takes_any else {key: value for key, value in rest.items() if key in names.known}
    if not inputs and len(rest) == 1:
        return model(*rest.values())
    missing = names.required - inputs.keys()
    if missing:
        raise DataError(
            f"the batch lacks what {type(model).__name__} reads",
            found=f"keys {', '.join(sorted(batch)) or 'none'}",
            wanted=", ".join(sorted(missing)),
        )
    return model(**inputs)


def answer_to(model: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> Any:
    """Return the model's answer to one tensor, or to a batch without targets."""
    return model(inputs) if isinstance(inputs, Tensor) else call_model(model, inputs)


def target(batch: Batch, key: str = "labels") -> Tensor:
    """Return the targets of a batch. Raises DataError where they are missing."""
    if key not in batch:
        raise DataError(f"the batch has no {key}", found=f"keys {', '.join(sorted(batch)) or 'none'}", wanted=key)
    return batch[key]
