"""A runtime in the place of a model, so that a task measures what is really deployed.

Only the model's own call goes through the runtime; other methods (`decode`, `generate`) are the original's.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.errors import ExportError
from deepseek.export.runtimes.runtime import Runtime


def as_model(model: nn.Module, runtime: Runtime) -> nn.Module:
    """Return `model` with its `forward` answered by `runtime`, in the same form (tensor, tuple, dict); weights are
    shared, not copied. Raises ModelError, when called, for inputs that the runtime does not take.
    """
    names = [name for name in inspect.signature(model.forward).parameters]
    wanted = {spec.name for spec in runtime.signature.inputs}
    form = _Form()

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        inputs = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        idle = {name: inputs.pop(name) for name in set(inputs) - wanted}
        if idle:
            raise ExportError(
                f"the exported form has no input '{sorted(idle)[0]}'",
                found=sorted(wanted),
                fix="export it with that input",
            )
        if form.kind is None:
            with torch.no_grad():
                form.learn(type(model).forward(model, *args, **kwargs))
        return form.rebuild(runtime.run(inputs))

    stand_in = copy.copy(model)
    stand_in.forward = forward
    return stand_in


class _Form:
    """How a model's answer is put together, learned from one answer."""

    def __init__(self) -> None:
        self.kind: Any = None
        self._keys: list[str] = []

    def learn(self, answer: Any) -> None:
        self.kind = type(answer)
        if isinstance(answer, Mapping):
            self._keys = [str(key) for key in answer]
        elif hasattr(answer, "_fields"):
            self._keys = list(answer._fields)

    def rebuild(self, outputs: Mapping[str, Tensor]) -> Any:
        if self.kind is None or issubclass(self.kind, Tensor):
            return next(iter(outputs.values()))
        if issubclass(self.kind, Mapping):
            return {key: _output(outputs, key) for key in self._keys}
        if self._keys:
            return self.kind(**{key: _output(outputs, key) for key in self._keys})
        return self.kind(outputs.values())


def _output(outputs: Mapping[str, Tensor], name: str) -> Tensor | None:
    """Return an output by its name in the model; a file calls it `NAME_out` where NAME is an input too."""
    return outputs.get(name, outputs.get(f"{name}_out"))
