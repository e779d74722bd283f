"""Sizes of outputs that follow from a size of the inputs: a quarter of the frames, half of the pixels.

They are found by running the model at neighbouring sizes, so that answers of padded rows can be cut to what they are
alone. Not here: cutting them (see `batch`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

_STRIDES = range(1, 10)


class Derived(NamedTuple):
    """The size (size of `axis` - offset) // stride."""

    axis: str
    offset: int
    stride: int

    def of(self, size: int) -> int:
        """Return the output's size."""
        return max(0, (size - self.offset) // self.stride)


def derived_axes(
    run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
    output_axes: Mapping[str, Sequence[str | None]],
    axis: str,
    at: Callable[[int], Mapping[str, np.ndarray]],
    sizes: tuple[int, int],
) -> dict[str, Derived]:
    """Return the outputs' free dimensions, by their names, that follow from the inputs' dimension `axis`.

    `at` makes inputs with so many of it. `sizes`: the least that the model takes and the largest to try; it is run from
    the largest downwards, and at some much smaller ones.
    """
    free = {name: [(i, one) for i, one in enumerate(axes) if i and one] for name, axes in output_axes.items()}
    wanted = {one for pairs in free.values() for _, one in pairs} - {axis}
    if not wanted:
        return {}
    least, size = sizes
    near = range(size - len(_STRIDES), size + 1)
    tries = sorted({max(least, one) for one in (*near, size // 4, size // 3, size // 2, size * 3 // 4)})
    seen: dict[str, list[int]] = {one: [] for one in wanted}
    for tried in tries:
        outputs = run(at(tried))
        shapes = {one: outputs[name].shape[i] for name, pairs in free.items() for i, one in pairs if name in outputs}
        for one in wanted & shapes.keys():
            seen[one].append(shapes[one])
    return {one: found for one in sorted(wanted) if (found := _fitting(axis, tries, seen[one])) is not None}


def _fitting(axis: str, sizes: Sequence[int], found: Sequence[int]) -> Derived | None:
    """Return the rule that all sizes follow, None where there is none, or several, or the size never changes."""
    if len(found) != len(sizes) or len(set(found)) == 1:
        return None
    rules = []
    for stride in _STRIDES:
        lowest = max(size - stride * (count + 1) + 1 for size, count in zip(sizes, found, strict=True))
        highest = min(size - stride * count for size, count in zip(sizes, found, strict=True))
        rules += [Derived(axis, offset, stride) for offset in range(lowest, highest + 1)]
    return rules[0] if len(rules) == 1 else None
