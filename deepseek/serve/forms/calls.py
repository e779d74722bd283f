"""A task's `predict` around a model that runs elsewhere: what it would call the model with, and its answer to outputs.

The model's place is taken by a stand-in (`deepseek.export.runtimes.as_model`) whose runtime has no outputs the first
time, so that the call ends there with its inputs known, and the outputs of the engine the second time. So softmax,
suppression of boxes, decoding of CTC are the task's own code.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping, Sequence
from itertools import chain
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepseek.errors import DataError, ModelError, RequestError
from deepseek.export.runtimes.as_model import as_model
from deepseek.export.runtimes.eager import usual_axes
from deepseek.export.runtimes.runtime import Runtime
from deepseek.serve.tensor.least import least_sizes

if TYPE_CHECKING:
    from deepseek.serve.tensor.datatypes import ModelSignature

_TENSOR_TASKS = frozenset({"detection", "image_classification", "segmentation"})
"""Tasks that take a lone tensor, whatever its name."""


class Predicts(Protocol):
    """What is needed of a task (`deepseek.tasks.task.Task`) to answer with."""

    name: str

    def predict(self, model: nn.Module, inputs: Any) -> Any:
        """Return the model's answer to inputs, without gradients."""
        ...


class _Asked(Exception):
    """The task called the model; the call ends here."""

    def __init__(self, inputs: dict[str, Tensor]) -> None:
        self.inputs = inputs


class _Desk:
    """The runtime behind the stand-in: it hands over outputs that are laid on it, one request a thread."""

    def __init__(self, names: list[str]) -> None:
        self.signature = SimpleNamespace(inputs=[SimpleNamespace(name=name) for name in names])
        self.given = threading.local()

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] | None = getattr(self.given, "outputs", None)
        if outputs is None:
            raise _Asked(dict(inputs))
        return outputs


class Calls:
    """The calls of one model under one task."""

    def __init__(
        self,
        model: nn.Module,
        task: Predicts,
        shapes: Mapping[str, Sequence[int]],
        least: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """`shapes`: the inputs that the served model takes, -1 where a size is free; `least`: how small that may be."""
        self._task, self._model, self.shapes = task, model, shapes
        self._least = {name: sizes for name, sizes in (least or {}).items() if max(sizes, default=1) > 1}
        self._device = device_of(model)
        self.example: dict[str, Tensor] = example_of(model)
        names = list(inspect.signature(model.forward).parameters)
        self._desk = _Desk(names)
        self._stand_in = as_model(model, cast(Runtime, self._desk))
        try:
            self._stand_in(**self.example)  # learns how an answer is put together
        except _Asked:
            pass

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
        """Return what the task calls the model with for a batch, under the names of the model's signature.

        Raises RequestError where the model lacks something.
        """
        self._desk.given.outputs = None
        try:
            self._task.predict(self._stand_in, asked(self._task, batch))
        except _Asked as call:
            wanted = call.inputs
        else:
            raise ModelError(f"the task {self._task.name} did not call the model", found=type(self._model).__name__)
        return {name: value.detach().cpu().numpy() for name, value in self._aligned(wanted).items()}

    def answer(self, batch: Mapping[str, Tensor], outputs: Mapping[str, NDArray[Any]]) -> Any:
        """Return what the task predicts where the model answers `outputs`, on the model's device."""
        tensors = {name: _tensor(value).to(self._device) for name, value in outputs.items()}
        self._desk.given.outputs = tensors
        try:
            return self._task.predict(self._stand_in, asked(self._task, batch))
        finally:
            self._desk.given.outputs = None

    def fits(self, inputs: Mapping[str, NDArray[Any]]) -> bool:
        """Return whether inputs have the sizes that the served model takes."""
        for name, shape in self.shapes.items():
            value = inputs.get(name)
            if value is None or value.shape[1:] == shape[1:]:
                continue
            if len(value.shape) != len(shape):
                return False
            if any(wanted not in (-1, size) for size, wanted in zip(value.shape, shape, strict=True)):
                return False
        return all(
            size >= least
            for name, sizes in self._least.items()
            if name in inputs
            for size, least in zip(inputs[name].shape, sizes, strict=True)
        )

    def sizes_in_words(self) -> dict[str, tuple[int | str, ...]]:
        """Return the sizes that fit, without the batch's: numbers, or "any", or "at least 7"."""
        return {
            name: tuple(
                size if size >= 0 else "any" if least < 2 else f"at least {least}"
                for size, least in zip(shape[1:], self._least.get(name, (1,) * len(shape))[1:], strict=True)
            )
            for name, shape in self.shapes.items()
        }

    def passes_on(self, batch: Mapping[str, Tensor]) -> bool:
        """Return whether the task calls the model with just what the batch has, as it is."""
        called = self.inputs(batch)
        return called.keys() == batch.keys() == self.shapes.keys() and all(
            called[name].dtype == value.numpy().dtype and np.array_equal(called[name], value.numpy())
            for name, value in batch.items()
        )

    def _aligned(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the inputs of the served model: those that are left out filled, those it does without dropped."""
        kept = {name: value for name, value in inputs.items() if name in self.shapes or self._is_used(name, value)}
        rows = len(next(iter(inputs.values())))
        for name in self.shapes:
            if name not in kept and name in self.example:
                kept[name] = _default(name, self.example[name], inputs, rows)
        return kept

    def _is_used(self, name: str, value: Tensor) -> bool:
        """Return whether a model that has no such input would answer otherwise; what its example has it can drop."""
        return name not in self.example and not (name == "attention_mask" and bool((value == 1).all()))


def asked(task: Predicts, batch: Mapping[str, Tensor]) -> Any:
    """Return a batch in the form that `predict` of the task takes: a mapping, or a lone tensor."""
    return next(iter(batch.values())) if task.name in _TENSOR_TASKS and len(batch) == 1 else dict(batch)


def example_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's own example of one row; nothing where it has none."""
    make = getattr(model, "example_inputs", None)
    return dict(make(1)) if make is not None else {}


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's weights are."""
    weight = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if weight is None else weight.device


def served_shapes(model: nn.Module, signature: ModelSignature | None) -> dict[str, tuple[int, ...]]:
    """Return the sizes of each input that is served, -1 where it is free; without a signature by the model's example.

    A model without an example has none.
    """
    if signature is not None:
        return {spec.name: tuple(spec.shape) for spec in signature.inputs}
    example = example_of(model)
    axes = usual_axes(model, example)
    return {
        name: tuple(size if axis is None else -1 for size, axis in zip(value.shape, axes[name], strict=True))
        for name, value in example.items()
    }


def served_least(model: nn.Module, signature: ModelSignature | None) -> dict[str, tuple[int, ...]]:
    """Return the least size of each dimension of each input that is served; without a signature by trial."""
    if signature is not None:
        names, least = signature.axes, signature.least
    else:
        example = example_of(model)
        names = usual_axes(model, example)
        least = least_sizes(model, example, names)
    return {name: tuple(1 if axis is None else least.get(axis, 1) for axis in axes) for name, axes in names.items()}


def run_task(task: Predicts, model: nn.Module, batch: Mapping[str, Tensor], field: str) -> Any:
    """Return the task's prediction by the eager model. Raises RequestError for what the model refuses."""
    device = device_of(model)
    moved = {name: value.to(device) for name, value in batch.items()}
    try:
        return task.predict(model, asked(task, moved))
    except (ModelError, DataError) as error:
        raise RequestError(
            f"the model can't take this: {error.problem}", field=field, found=error.found, wanted=error.wanted
        ) from error
    except torch.OutOfMemoryError as error:
        raise RequestError("there is no memory left for this", field=field, status=503) from error
    except (RuntimeError, IndexError) as error:  # sizes that the template did not foresee; the model itself was tried
        raise RequestError("the model can't take this", field=field, wanted="another size, or fewer") from error


def _tensor(value: NDArray[Any]) -> Tensor:
    array = np.ascontiguousarray(value)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _default(name: str, example: Tensor, inputs: Mapping[str, Tensor], rows: int) -> Tensor:
    """Return what an input is that the task leaves out: what the model takes for None, else the example's row."""
    ids = inputs.get("input_ids")
    if name == "token_type_ids" and ids is not None:
        return torch.zeros_like(ids)
    if name == "attention_mask" and ids is not None:
        return torch.ones_like(ids)
    if name == "lengths" and "input_features" in inputs:
        return torch.full((rows,), inputs["input_features"].shape[1], dtype=example.dtype)
    return example[:1].expand(rows, *example.shape[1:]).contiguous()
