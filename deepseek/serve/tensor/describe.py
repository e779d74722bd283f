"""The signature of a served bundle, and what was seen of its answers: do rows touch each other, may lengths be padded?

Names come from the model, free sizes from both model and runtime. That rows in one run answer as alone, and that zeros
behind a mask, or behind the frames that count, change nothing, is tried before requests are ever put together.
Not here: running requests.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from deepseek.export.runtimes.eager import EagerRuntime, working_axes
from deepseek.export.signature import Signature, named_inputs, resized
from deepseek.serve.tensor.arrays import to_arrays
from deepseek.serve.tensor.batch import Arrays, Joiner
from deepseek.serve.tensor.datatypes import ModelSignature, TensorSpec, datatype_of
from deepseek.serve.tensor.derived import Derived, derived_axes
from deepseek.serve.tensor.least import least_sizes

TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2, "int8": 3e-2}
"""How far an answer may move when other rows or padding share its run: the share of the largest value, or of 1."""
_LENGTHS = ("time", "decoder_time")
_COUNTED = "input_features"
"""The input of whose rows `lengths` says how many frames count."""

Run = Callable[[Arrays], Mapping[str, np.ndarray]]


class Described:
    """A bundle's model in terms of the protocol."""

    def __init__(self, model: nn.Module, max_size: int) -> None:
        self.inputs: dict[str, Tensor] = named_inputs(model, None)
        self.axes = working_axes(model, self.inputs)
        self._model, self._max_size = model, max_size
        self.own: Signature = EagerRuntime(model, self.inputs, self.axes).signature
        """The model's own signature, in PyTorch."""
        self._least = least_sizes(model, self.inputs, self.axes)
        self.halves = frozenset(spec.name for spec in self.own.inputs if spec.dtype == torch.bfloat16)

    def names(self, runtime: Signature) -> dict[str, str]:
        """Return the model's names of outputs that the runtime calls otherwise (`NAME_out` where NAME is an input)."""
        known = {spec.name for spec in self.own.outputs}
        stripped = {spec.name: spec.name.removesuffix("_out") for spec in runtime.outputs if spec.name not in known}
        return {name: plain for name, plain in stripped.items() if plain in known}

    def signature(self, runtime: Signature, *, row_by_row: bool) -> ModelSignature:
        """Return what goes in and out of the served model; `row_by_row`: the runtime's own batch is one."""
        names = self.names(runtime)
        theirs = {spec.name: spec for spec in runtime.inputs}
        axes, inputs = {}, []
        for spec in self.own.inputs:
            if spec.name not in theirs:
                continue  # the exported form does not use it
            merged = tuple(
                size if isinstance(fixed, str) or (index == 0 and row_by_row) else fixed
                for index, (size, fixed) in enumerate(zip(spec.shape, theirs[spec.name].shape, strict=True))
            )
            axes[spec.name] = tuple(size if isinstance(size, str) else None for size in merged)
            inputs.append(TensorSpec(spec.name, datatype_of(spec.dtype), _sizes(merged)))
        ours = {spec.name: spec for spec in self.own.outputs}
        outputs, output_axes = [], {}
        for found in runtime.outputs:
            known = ours.get(names.get(found.name, found.name), found)
            output_axes[known.name] = tuple(size if isinstance(size, str) else None for size in known.shape)
            dtype = torch.float32 if known.dtype in (torch.float16, torch.bfloat16) else known.dtype
            outputs.append(TensorSpec(known.name, datatype_of(dtype), _sizes(known.shape)))
        free = {axis for sizes in axes.values() for axis in sizes if axis is not None} - {"batch"}
        told = {axis: limit for axis, limit in runtime.limits.items() if axis in free}
        limits = {axis: self._limit(axis) for axis in sorted(free)} | told
        shared = all(sizes[:1] == ("batch",) for sizes in [*axes.values(), *output_axes.values()])
        least = {axis: size for axis, size in self._least.items() if axis in free}
        ranges = self._ranges(axes)
        return ModelSignature(tuple(inputs), tuple(outputs), axes, limits, output_axes, ranges, shared, least=least)

    def example(self, signature: ModelSignature, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Return made-up inputs with so many rows, of the sizes of the model's own example."""
        wanted = {spec.name for spec in signature.inputs}
        plain = {name: value.cpu() for name, value in self.inputs.items()}
        sizes = {
            axis: size
            for name, value in plain.items()
            for axis, size in zip(self.axes[name], value.shape, strict=True)
            if axis is not None
        }
        made = resized(plain, self.axes, {**sizes, "batch": rows} if "batch" in sizes else sizes, seed)
        return {name: value for name, value in to_arrays(made).items() if name in wanted}

    def _limit(self, axis: str) -> int:
        """Return the largest size of a free dimension: the model's own, else the server's."""
        config = getattr(self._model, "config", None)
        if axis == "frames":
            length = getattr(config, "max_frames", None) or getattr(getattr(config, "audio", None), "max_frames", None)
        else:
            length = getattr(config, "max_length", None) if axis in _LENGTHS else None
        return length if isinstance(length, int) else self._max_size

    def _ranges(self, inputs: Mapping[str, object]) -> dict[str, tuple[int, int | tuple[int, ...]]]:
        """Return the bounds of whole numbers that index a table of the model, as its config tells them."""
        config = getattr(self._model, "config", None)
        found: dict[str, tuple[int, int | tuple[int, ...]]] = {}
        for name, field in (
            ("input_ids", "vocab_size"),
            ("decoder_input_ids", "vocab_size"),
            ("token_type_ids", "token_types"),
        ):
            bound = getattr(config, field, None)
            if name in inputs and isinstance(bound, int):
                found[name] = 0, bound
        columns = getattr(config, "cardinalities", None)
        if "categorical" in inputs and columns:
            found["categorical"] = 0, tuple(columns)
        return found


def rows_are_apart(run: Run, example: Arrays, precision: str) -> bool:
    """Return whether every row of `example` (at least 2) is answered as it is alone."""
    together = run(example)
    rows = len(next(iter(example.values())))
    for index in range(rows):
        alone = run({name: value[index : index + 1] for name, value in example.items()})
        if any(not close(alone[name], value[index : index + 1], precision) for name, value in together.items()):
            return False
    return True


def paddable(run: Run, signature: ModelSignature, example: Arrays, precision: str) -> frozenset[str]:
    """Return the dimensions along which zeros may be added behind a mask (`NAME_mask`), or behind the frames that
    `lengths` counts, without changing an answer."""
    allowed = set()
    for axis in sorted(_masked(signature)):
        joiner = Joiner(signature, (axis,))
        short = shortened(example, signature, axis)
        if any(value.size == 0 for value in short.values()):
            continue
        requests = [short, dict(example)]
        parts = joiner.split(run(joiner.join(requests)), requests)
        alone = [run(request) for request in requests]
        if all(
            name in part and close(value, part[name], precision)
            for part, answer in zip(parts, alone, strict=True)
            for name, value in answer.items()
        ):
            allowed.add(axis)
    return frozenset(allowed)


def with_derived(run: Run, signature: ModelSignature, example: Arrays) -> ModelSignature:
    """Return the signature with the outputs' sizes that follow from those of the inputs that may be padded."""
    found: dict[str, Derived] = {}
    for axis in sorted(_masked(signature)):
        size = next(
            value.shape[signature.axes[name].index(axis)]
            for name, value in example.items()
            if axis in signature.axes[name]
        )
        at = functools.partial(shortened, example, signature, axis)
        found |= derived_axes(run, signature.output_axes, axis, at, (signature.least.get(axis, 1), size))
    return signature._replace(derived=found)


def shortened(example: Arrays, signature: ModelSignature, axis: str, size: int | None = None) -> dict[str, np.ndarray]:
    """Return inputs with one dimension of `size`, None: about a third shorter."""
    found = {name: _cut(value, signature.axes[name], axis, size) for name, value in example.items()}
    if "lengths" in found and axis in signature.axes.get(_COUNTED, ()):
        found["lengths"] = np.minimum(found["lengths"], found[_COUNTED].shape[1]).astype(found["lengths"].dtype)
    return found


def _masked(signature: ModelSignature) -> set[str]:
    """Return the free dimensions that a mask or a count of frames covers."""
    masked = {axis for name, axes in signature.axes.items() if name.endswith("_mask") for axis in axes[1:] if axis}
    if signature.axes.get("lengths") == ("batch",):
        masked |= {axis for axis in signature.axes.get(_COUNTED, ())[1:2] if axis}
    return masked


def close(wanted: np.ndarray, found: np.ndarray, precision: str) -> bool:
    """Return whether two answers differ by no more than rounding does in this precision."""
    if wanted.shape != found.shape:
        return False
    if not wanted.size or wanted.dtype.kind != "f":
        return bool(np.array_equal(wanted, found))
    bound = TOLERANCE[precision] * max(1.0, float(np.abs(wanted).max()))
    return bool(np.abs(wanted - found).max() <= bound)


def _cut(value: np.ndarray, axes: tuple[str | None, ...], axis: str, wanted: int | None) -> np.ndarray:
    """Return `value` with one dimension of the wanted size, None: about a third shorter."""
    place = [
        slice(None if name != axis else wanted or max(1, size * 2 // 3))
        for name, size in zip(axes, value.shape, strict=True)
    ]
    return value[tuple(place)]


def _sizes(shape: tuple[int | str, ...]) -> tuple[int, ...]:
    return tuple(-1 if isinstance(size, str) else size for size in shape)
