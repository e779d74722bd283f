"""Names of number formats on the wire, and what inputs a served model takes, checked before anything runs.

Source of the names: the Open Inference Protocol (KServe v2), "Tensor Data Types". A BF16 array is kept as its bits in
`np.uint16`, as numpy has no such format; BYTES is an object array of `bytes`.
Not here: running a model (see `model`), and JSON (see `rest`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deepseek.errors import ModelError, RequestError, did_you_mean
from deepseek.serve.tensor.derived import Derived

if TYPE_CHECKING:
    import torch

_NUMPY: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "BOOL": np.dtype(np.bool_),
        "UINT8": np.dtype(np.uint8),
        "UINT16": np.dtype(np.uint16),
        "UINT32": np.dtype(np.uint32),
        "UINT64": np.dtype(np.uint64),
        "INT8": np.dtype(np.int8),
        "INT16": np.dtype(np.int16),
        "INT32": np.dtype(np.int32),
        "INT64": np.dtype(np.int64),
        "FP16": np.dtype(np.float16),
        "FP32": np.dtype(np.float32),
        "FP64": np.dtype(np.float64),
        "BF16": np.dtype(np.uint16),
        "BYTES": np.dtype(object),
    }
)
_TORCH = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
}
DATATYPES = tuple(_NUMPY)
"""Every name of the protocol."""


def numpy_dtype(datatype: str) -> np.dtype[Any]:
    """Return numpy's dtype for a name of the protocol. Raises RequestError (400) for an unknown name."""
    try:
        return _NUMPY[datatype]
    except (KeyError, TypeError):
        wanted = ", ".join(DATATYPES)
        raise RequestError("unknown datatype", field="datatype", found=ascii(datatype)[:64], wanted=wanted) from None


def datatype_of(dtype: torch.dtype) -> str:
    """Return the protocol's name of a torch dtype. Raises ModelError for one it has no name for."""
    name = str(dtype).removeprefix("torch.")
    if name not in _TORCH:
        raise ModelError("the inference protocol has no name for this number format", found=name, wanted=list(_TORCH))
    return _TORCH[name]


class TensorSpec(NamedTuple):
    """One input or output: `shape` has -1 where a size is free; the batch axis comes first."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelSignature(NamedTuple):
    """What goes in and what comes out of a served model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: Mapping[str, tuple[str | None, ...]] = MappingProxyType({})
    """Names of the free dimensions of the inputs (None: fixed); one name is one size everywhere."""
    limits: Mapping[str, int] = MappingProxyType({})
    """The largest size of a named dimension, where there is one."""
    output_axes: Mapping[str, tuple[str | None, ...]] = MappingProxyType({})
    """Names of the free dimensions of the outputs, of the same names as those of the inputs where the sizes are."""
    ranges: Mapping[str, tuple[int, int | tuple[int, ...]]] = MappingProxyType({})
    """For an input of whole numbers the least value and the one above the greatest (or one for each column)."""
    batch_axis: bool = True
    """Whether the first dimension counts rows that do not touch each other, so that requests can share a run."""
    derived: Mapping[str, Derived] = MappingProxyType({})
    """Free dimensions of the outputs, by name, whose size follows from one of the inputs."""
    least: Mapping[str, int] = MappingProxyType({})
    """The smallest size of a named dimension of the inputs, where it is above 1."""

    def check(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Return the number of rows. Raises RequestError (400), naming the input, where they don't fit."""
        specs, names = self.inputs, self._names()
        if len(inputs) != len(specs) or not names.keys() >= inputs.keys():
            raise _wrong_names(inputs, names)
        sizes: dict[str, int] = {}
        for spec in specs:
            value = inputs[spec.name]
            if value.dtype is not _NUMPY[spec.datatype] and value.dtype != _NUMPY[spec.datatype]:
                raise RequestError(
                    f"'{spec.name}' has the wrong datatype",
                    field=spec.name,
                    found=str(value.dtype),
                    wanted=spec.datatype,
                )
            self._check_shape(spec, value.shape, sizes)
            if spec.name in self.ranges:
                _check_range(spec.name, value, self.ranges[spec.name])
        first = inputs[specs[0].name].shape
        return int(first[0]) if first else 1

    def checker(self) -> Callable[[Mapping[str, np.ndarray]], int]:
        """Return `check`, quicker where it may be: for one input whose sizes are fixed but for the rows."""
        if len(self.inputs) != 1 or self.inputs[0].name in self.ranges:
            return self.check
        name, datatype, shape = self.inputs[0]
        rows = self.axes.get(name, (None,))[0] if shape else None
        if shape[:1] != (-1,) or min(shape[1:], default=0) < 0 or rows in self.limits:
            return self.check
        dtype, tail = _NUMPY[datatype], shape[1:]

        def quick(inputs: Mapping[str, np.ndarray]) -> int:
            value = inputs.get(name)
            if (
                value is None
                or len(inputs) != 1
                or value.dtype is not dtype
                or value.ndim == 0
                or value.shape[1:] != tail
            ):
                return self.check(inputs)
            return len(value) or self.check(inputs)

        return quick

    def _names(self) -> Mapping[str, TensorSpec]:
        return _by_name(self.inputs)

    def _check_shape(self, spec: TensorSpec, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
        """Hold a shape against the specification; `sizes` collects what the named dimensions are in this request."""
        fits = len(shape) == len(spec.shape)
        if fits:
            axes = self.axes.get(spec.name) or (None,) * len(shape)
            for size, wanted, axis in zip(shape, spec.shape, axes, strict=True):
                if wanted >= 0:
                    fits = fits and size == wanted
                elif axis is None:
                    fits = fits and size > 0
                else:
                    least, most = self.least.get(axis, 1), self.limits.get(axis, size)
                    fits = fits and sizes.setdefault(axis, size) == size and least <= size <= most
        if not fits:
            raise RequestError(
                f"'{spec.name}' has the wrong shape",
                field=spec.name,
                found=list(shape),
                wanted=self.shape_in_words(spec),
            )

    def shape_in_words(self, spec: TensorSpec) -> str:
        """Return a shape as `[batch, time <= 512, 3]`: names where sizes are free, with their limits."""
        axes = self.axes.get(spec.name) or (None,) * len(spec.shape)
        words = [
            str(size) if size >= 0 else "any" if axis is None else self._axis_in_words(axis)
            for size, axis in zip(spec.shape, axes, strict=True)
        ]
        return "[" + ", ".join(words) + "], none of them 0"

    def _axis_in_words(self, axis: str) -> str:
        least = f"{self.least[axis]} <= " if axis in self.least else ""
        return f"{least}{axis}" + (f" <= {self.limits[axis]}" if axis in self.limits else "")


@functools.lru_cache(maxsize=256)
def _by_name(specs: tuple[TensorSpec, ...]) -> Mapping[str, TensorSpec]:
    return {spec.name: spec for spec in specs}


def _wrong_names(inputs: Mapping[str, np.ndarray], names: Mapping[str, TensorSpec]) -> RequestError:
    for name in inputs:
        if name not in names:
            shown = name if name.isprintable() and len(name) <= 64 else ascii(name)[:64]
            return RequestError(f"unknown input '{shown}'", field="inputs", fix=did_you_mean(shown, names))
    missing = sorted(names.keys() - inputs.keys())
    return RequestError(f"input '{missing[0]}' is missing", field="inputs", wanted=", ".join(names))


def _check_range(name: str, value: np.ndarray, allowed: tuple[int, int | tuple[int, ...]]) -> None:
    low, high = allowed
    wrong = (value < low) | (value >= np.asarray(high))
    if wrong.any():
        wanted = f"{low} to {high - 1}" if isinstance(high, int) else f"{low} to below {list(high)}, column by column"
        raise RequestError(
            f"'{name}' has a value outside its range", field=name, found=int(value[wrong][0]), wanted=wanted
        )
