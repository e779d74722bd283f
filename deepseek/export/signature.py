"""The inputs and outputs of a model as names, dtypes and shapes, and made-up inputs of any allowed shape.

Not here: running anything but one eager pass for the outputs (`runtimes.py` runs models).
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from deepseek.errors import ExportError, ModelError, did_you_mean

ExampleInputs = Mapping[str, Tensor] | Sequence[Tensor] | Tensor
"""Inputs by the names of `forward`, or its positional arguments, or the only one."""

Axes = Mapping[str, Sequence[str | None]]
"""For each input the names of its dimensions; one name is one size everywhere, None is a fixed size."""


class TensorSpec(NamedTuple):
    """One input or output. A text in `shape` names a size that may change."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]


class Signature(NamedTuple):
    """What goes in and what comes out."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    limits: Mapping[str, int] = MappingProxyType({})
    """The largest size of a named dimension, where there is one."""

    def to_json(self) -> str:
        """Return the signature as text that `from_json` reads."""
        specs = [[[s.name, str(s.dtype).removeprefix("torch."), s.shape] for s in group] for group in self[:2]]
        return json.dumps({"inputs": specs[0], "outputs": specs[1], "limits": dict(self.limits)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote. Raises ValueError, KeyError, TypeError or AttributeError for anything else."""
        values = json.loads(text)
        groups = [
            tuple(TensorSpec(str(name), getattr(torch, dtype), tuple(shape)) for name, dtype, shape in values[group])
            for group in ("inputs", "outputs")
        ]
        return cls(groups[0], groups[1], {str(axis): int(limit) for axis, limit in values["limits"].items()})

    def check(self, inputs: Mapping[str, Tensor]) -> None:
        """Raise ModelError, naming the input, if names, dtypes or shapes are not what the signature says."""
        names = [spec.name for spec in self.inputs]
        for name in inputs:
            if name not in names:
                raise ModelError(f"unknown input '{name}'", fix=did_you_mean(name, names))
        sizes: dict[str, int] = {}
        for spec in self.inputs:
            if spec.name not in inputs:
                raise ModelError(f"input '{spec.name}' is missing", found=sorted(inputs), wanted=names)
            tensor = inputs[spec.name]
            fits = len(tensor.shape) == len(spec.shape) and all(
                size == (sizes.setdefault(want, size) if isinstance(want, str) else want)
                for size, want in zip(tensor.shape, spec.shape, strict=True)
            )
            if tensor.dtype != spec.dtype or not fits:
                found = f"{tensor.dtype} {tuple(tensor.shape)}"
                raise ModelError(
                    f"input '{spec.name}' does not fit", found=found, wanted=f"{spec.dtype} {spec.shape}, sizes {sizes}"
                )
        for axis, limit in self.limits.items():
            if sizes.get(axis, 0) > limit:
                raise ModelError(f"'{axis}' is too long", found=sizes[axis], wanted=f"at most {limit}")


def named_inputs(target: nn.Module | Callable[..., Any], example: ExampleInputs | None) -> dict[str, Tensor]:
    """Return example inputs by name; without any, the model's own `example_inputs`.

    Raises ExportError if there are none, or if one is not a tensor or not an input.
    """
    if example is None:
        if not hasattr(target, "example_inputs"):
            raise ExportError("no example inputs to capture the model with", fix="pass example_inputs=...")
        example = cast(ExampleInputs, target.example_inputs(batch_size=2))
    parameters = inspect.signature(target.forward if isinstance(target, nn.Module) else target).parameters
    if isinstance(example, Tensor):
        example = (example,)
    named = dict(example) if isinstance(example, Mapping) else dict(zip(parameters, example, strict=False))
    if not isinstance(example, Mapping) and len(named) < len(example):
        raise ExportError("more example inputs than the model takes", found=len(example), wanted=list(parameters))
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise ExportError(f"example input '{name}' is not a tensor", found=type(value).__name__)
        if name not in parameters:
            raise ExportError(f"the model has no input '{name}'", fix=did_you_mean(name, parameters))
    return named


def default_axes(inputs: Mapping[str, Tensor]) -> dict[str, tuple[str | None, ...]]:
    """Return the dimensions that usually change: the first is `batch`, the second of 2-D integers (ids) is a length.

    The length is `time`, or `decoder_time` for inputs whose name begins with `decoder_`.
    """
    axes: dict[str, tuple[str | None, ...]] = {}
    for name, tensor in inputs.items():
        is_ids = tensor.dim() == 2 and not tensor.dtype.is_floating_point
        length = "decoder_time" if name.startswith("decoder_") else "time"
        names: tuple[str | None, ...] = ("batch", length) if is_ids else ("batch",)
        axes[name] = names[: tensor.dim()] + (None,) * (tensor.dim() - len(names))
    return axes


def check_axes(inputs: Mapping[str, Tensor], axes: Axes) -> dict[str, tuple[str | None, ...]]:
    """Return `axes` for every input (all fixed where none are given). Raises ExportError where they do not fit."""
    for name in axes:
        if name not in inputs:
            raise ExportError(f"axes for an unknown input '{name}'", fix=did_you_mean(name, inputs))
    checked: dict[str, tuple[str | None, ...]] = {}
    for name, tensor in inputs.items():
        names = tuple(axes.get(name, (None,) * tensor.dim()))
        if len(names) != tensor.dim():
            raise ExportError(
                f"axes of input '{name}' do not fit", found=f"{len(names)} names", wanted=f"{tensor.dim()} dimensions"
            )
        checked[name] = names
    return checked


def axis_sizes(inputs: Mapping[str, Tensor], axes: Axes) -> dict[str, int]:
    """Return the size of each named axis in `inputs`, at least 2: a size of 1 would be taken for a constant."""
    sizes: dict[str, int] = {}
    for name, tensor in inputs.items():
        for axis, size in zip(axes[name], tensor.shape, strict=True):
            if axis is not None:
                sizes[axis] = max(sizes.get(axis, 2), size)
    return sizes


def resized(inputs: Mapping[str, Tensor], axes: Axes, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
    """Return inputs with the named axes of the given sizes, filled with values drawn from the example's own.

    Integers along a fixed dimension (columns of a table) stay at their place there. A mask (`..._mask`) never hides all
    of a row, as attention to nothing has no defined answer, and `lengths` are no longer than `input_features`.
    """
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, tensor in inputs.items():
        free = [index for index, axis in enumerate(axes[name]) if axis is not None]
        if tensor.dtype.is_floating_point:
            free = list(range(tensor.dim()))  # drawn one by one, so that no two rows are alike
        fixed = [index for index in range(tensor.dim()) if index not in free]
        wanted = [size if axis is None else sizes[axis] for axis, size in zip(axes[name], tensor.shape, strict=True)]
        pool = tensor.detach().cpu().permute(*free, *fixed).reshape(-1, *(tensor.shape[index] for index in fixed))
        drawn = pool[torch.randint(max(len(pool), 1), [wanted[index] for index in free], generator=generator)]
        value = drawn.permute([(*free, *fixed).index(index) for index in range(tensor.dim())]).contiguous()
        if name.endswith("_mask") and value.dim() == 2:
            value[:, :1] = 1
        result[name] = value
    if "lengths" in result and "input_features" in result:
        result["lengths"] = result["lengths"].clamp(max=result["input_features"].shape[1])
    return result


def output_tensors(output: Any, single: str = "output") -> dict[str, Tensor]:
    """Return a model's output by name: fields of a NamedTuple, keys of a dict, else `output` or `output_0`, ...

    Raises ExportError for anything that is not made of tensors.
    """
    if isinstance(output, Tensor):
        return {single: output}
    if isinstance(output, Mapping):
        named = dict(output)
    elif isinstance(output, tuple | list):
        names = getattr(output, "_fields", None) or [f"output_{index}" for index in range(len(output))]
        named = {name: value for name, value in zip(names, output, strict=True) if value is not None}
    else:
        named = {}
    if not named or not all(isinstance(value, Tensor) for value in named.values()):
        raise ExportError(
            "the output can't be exported",
            found=type(output).__name__,
            wanted="a tensor, or a NamedTuple or dict of them",
        )
    return named


def single_output_name(target: object) -> str:
    """Return what a lone output is called: `logits` for models that bring `example_inputs`, else `output`."""
    return "logits" if hasattr(target, "example_inputs") else "output"


@contextlib.contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Hold a module in eval mode without gradients; each submodule's own mode comes back afterwards."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    training = [module.training for module in modules]
    try:
        if isinstance(model, nn.Module):
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.training = mode
