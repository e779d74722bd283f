"""Putting the rows of several requests into one run, and taking the answers apart again.

Requests go together when their shapes are equal but for the rows; where a mask, or the number of frames that count,
lets the model ignore padding, also when lengths fall into one bucket: those are padded with zeros to the longest, and
answers are cut back.
Not here: when to run (see `engine`), and which lengths may be padded (see `describe`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from deepseek.serve.tensor.datatypes import ModelSignature

Arrays = Mapping[str, np.ndarray]
Key = tuple[object, ...]
_SMALLEST = 8


class Joiner:
    """Joins and splits for one model. `pad_axes` names the dimensions that may be padded."""

    def __init__(self, signature: ModelSignature, pad_axes: Collection[str] = ()) -> None:
        self._signature = signature
        self._pad_axes = frozenset(pad_axes)
        self._names = [spec.name for spec in signature.inputs]
        self._fixed = all(size >= 0 for spec in signature.inputs for size in spec.shape[1:])
        self._dims = {name: _places(axes, self._pad_axes) for name, axes in signature.axes.items()}
        cut = {name: one for name, one in signature.derived.items() if one.axis in self._pad_axes}
        self._derived = cut
        self._out_dims = {
            name: _places(axes, self._pad_axes | cut.keys()) for name, axes in signature.output_axes.items()
        }

    def key(self, inputs: Arrays) -> Key:
        """Return what must be equal of requests that share a run."""
        if self._fixed:
            return ()
        return tuple(
            tuple(
                bucket(size) if index in self._dims.get(name, {}) else size
                for index, size in enumerate(inputs[name].shape)
                if index
            )
            for name in self._names
        )

    def join(self, requests: Sequence[Arrays]) -> dict[str, np.ndarray]:
        """Return one set of inputs with the rows of all, in order."""
        if len(requests) == 1:
            return dict(requests[0])
        joined = {}
        for name in self._names:
            parts = [request[name] for request in requests]
            longest = tuple(max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True))
            if all(part.shape[1:] == longest for part in parts):
                joined[name] = np.concatenate(parts)
                continue
            whole = np.zeros((sum(len(part) for part in parts), *longest), parts[0].dtype)
            start = 0
            for part in parts:
                whole[(slice(start, start + len(part)), *(slice(size) for size in part.shape[1:]))] = part
                start += len(part)
            joined[name] = whole
        return joined

    def split(self, outputs: Arrays, requests: Sequence[Arrays]) -> list[dict[str, np.ndarray]]:
        """Return each request's part of the outputs, cut to its own lengths."""
        if len(requests) == 1:
            return [dict(outputs)]
        found, start = [], 0
        for request in requests:
            end = start + len(request[self._names[0]])
            sizes = self._sizes(request)
            found.append(
                {name: value[(slice(start, end), *self._cuts(name, value, sizes))] for name, value in outputs.items()}
            )
            start = end
        return found

    def _sizes(self, request: Arrays) -> dict[str, int]:
        if not self._pad_axes:
            return {}
        sizes = {axis: request[name].shape[index] for name, dims in self._dims.items() for index, axis in dims.items()}
        return sizes | {name: one.of(sizes[one.axis]) for name, one in self._derived.items()}

    def _cuts(self, name: str, value: np.ndarray, sizes: Mapping[str, int]) -> list[slice]:
        dims = self._out_dims.get(name)
        if not dims or not sizes:
            return []
        return [slice(sizes[dims[index]]) if index in dims else slice(None) for index in range(1, value.ndim)]


def bucket(size: int) -> int:
    """Return the bucket of a length: 8, then two steps for each doubling (12, 16, 24, ...), so padding is < 1/3."""
    if size <= _SMALLEST:
        return _SMALLEST
    power = 1 << (size - 1).bit_length()
    return power * 3 // 4 if size <= power * 3 // 4 else power


def _places(axes: Sequence[str | None], chosen: Collection[str]) -> dict[int, str]:
    return {index: axis for index, axis in enumerate(axes) if axis is not None and axis in chosen}
