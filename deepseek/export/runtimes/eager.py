"""PyTorch itself as a runtime, in float32 or bfloat16."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.errors import DeepSeekError
from deepseek.export.runtimes.runtime import Precision, in_float32, torch_threads
from deepseek.export.signature import (
    Axes,
    Signature,
    TensorSpec,
    axis_sizes,
    default_axes,
    evaluating,
    output_tensors,
    resized,
    single_output_name,
)
from deepseek.nn.int8_swap import int8_specs


class EagerRuntime:
    """PyTorch itself, in eval mode and without gradients.

    `bf16` runs a copy with 16-bit weights (one more copy of half the size). Models that mix number formats by
    themselves, and int8 ones, run under autocast instead, without a copy. Outputs come in float32.
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        example: Mapping[str, Tensor],
        axes: Axes,
        precision: Precision | None = None,
        threads: int | None = None,
    ) -> None:
        self.model = model
        self.precision = precision
        self._threads = threads
        self._single = single_output_name(model)
        self._autocast = precision == "bf16" and (not isinstance(model, nn.Module) or bool(int8_specs(model)))
        self._half = precision == "bf16" and not self._autocast
        self._example, self._axes = example, axes
        self._inputs = Signature(
            tuple(TensorSpec(n, t.dtype, tuple(_symbolic(t, axes[n]))) for n, t in example.items()), ()
        )
        if self._half and isinstance(model, nn.Module):
            self.model = half_copy(model)
            try:
                self.run(example)
            except RuntimeError:  # an operation that met two number formats
                self.model, self._half, self._autocast = model, False, True

    @functools.cached_property
    def signature(self) -> Signature:
        """Names, dtypes and shapes; the outputs' are found by two runs. Raises what the model raises at those sizes."""
        return Signature(self._inputs.inputs, self._output_specs(self._example, self._axes))

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once. Raises ModelError if the inputs do not fit the signature."""
        self.check(inputs)
        with evaluating(self.model), torch_threads(self._threads):
            return self.call(self.model, inputs)

    def check(self, inputs: Mapping[str, Tensor]) -> None:
        """Raise ModelError if the inputs do not fit the signature."""
        self._inputs.check(inputs)

    def call(self, model: Callable[..., Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Call `model` (this one, or its compiled form) in this runtime's precision; outputs by name."""
        if self._half:
            inputs = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
            return in_float32(output_tensors(model(**inputs), self._single))

    def _output_specs(self, example: Mapping[str, Tensor], axes: Axes) -> tuple[TensorSpec, ...]:
        """Run at two sets of sizes: an output dimension that changes between them is named after its axis."""
        sizes = axis_sizes(example, axes)
        shorter = {axis: max(1, size - 1 - index) for index, (axis, size) in enumerate(sizes.items())}
        first, second = (self.run(resized(example, axes, chosen)) for chosen in (sizes, shorter))
        axis_of = {(sizes[axis], shorter[axis]): axis for axis in reversed(sizes)}
        specs = []
        for name, tensor in first.items():
            pairs = enumerate(zip(tensor.shape, second[name].shape, strict=True))
            shape = tuple(
                pair[0] if pair[0] == pair[1] else axis_of.get(pair, f"{name}_{index}") for index, pair in pairs
            )
            specs.append(TensorSpec(name, tensor.dtype, shape))
        return tuple(specs)


def half_copy(model: nn.Module) -> nn.Module:
    """Return a copy with bfloat16 weights, made tensor by tensor: never a second one in float32."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            cast = tensor.detach().to(torch.bfloat16)
            memo[id(tensor)] = nn.Parameter(cast, requires_grad=False) if isinstance(tensor, nn.Parameter) else cast
    return copy.deepcopy(model, memo).eval().requires_grad_(False)


def usual_axes(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, tuple[str | None, ...]]:
    """Return the axes that may change, without a graph: what the template tells beside the usual ones (batch, length of
    ids). Where these contradict the inputs' own sizes, every dimension has a name of its own.
    """
    told = getattr(model, "input_axes", None) or {}
    axes = default_axes(inputs) | {name: tuple(names) for name, names in told.items() if name in inputs}
    sizes: dict[str, int] = {}
    for name, value in inputs.items():
        for axis, size in zip(axes[name], value.shape, strict=True):
            if axis is not None and sizes.setdefault(axis, size) != size:
                return {n: tuple(f"{n}_{index}" for index in range(v.dim())) for n, v in inputs.items()}
    return axes


def working_axes(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, tuple[str | None, ...]]:
    """Return axes at which the model was seen to run at two sizes: the usual ones, the batch alone, or none."""
    usual = usual_axes(model, inputs)
    batch = {name: tuple("batch" if axis == "batch" else None for axis in names) for name, names in usual.items()}
    for axes in (usual, batch):
        with contextlib.suppress(DeepSeekError, RuntimeError, IndexError):
            if EagerRuntime(model, inputs, axes).signature:
                return axes
    return {name: (None,) * value.dim() for name, value in inputs.items()}


def _symbolic(tensor: Tensor, names: Any) -> tuple[int | str, ...]:
    return tuple(size if name is None else name for size, name in zip(tensor.shape, names, strict=True))
