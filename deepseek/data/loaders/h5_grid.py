"""Which part of an HDF5 file's arrays is a sample: a row, a cut of each row, or a patch of a regular grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deepseek.errors import ConfigError, DataError


@dataclass(frozen=True)
class Part:
    """What is asked for: `cut` of the axes after the first, or `patch` of the last axes, `stride` apart."""

    cut: tuple[slice, ...] = ()
    patch: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for one in self.cut:
            if not isinstance(one, slice) or one.step not in (None, 1):
                raise ConfigError("slices of the further axes go in steps of 1", found=repr(one), wanted="slice(a, b)")
        if self.patch is None:
            if self.stride is not None:
                raise ConfigError("stride has no meaning without patch", found=f"stride={self.stride}")
            return
        if self.cut:
            raise ConfigError(
                "slices of the further axes and patch exclude each other", found=f"slices and {self.patch}"
            )
        sizes = (*self.patch, *(self.stride or ()))
        if not self.patch or len(self.patch) != len(self.stride or self.patch) or min(sizes) < 1:
            raise ConfigError(
                "patch or stride is wrong",
                found=f"patch={self.patch}, stride={self.stride}",
                wanted="a size of at least 1 for each axis, in both",
            )


@dataclass(frozen=True)
class Grid:
    """The samples of one file. `shapes` are those of the whole datasets, rows first.

    Raises DataError where the fields do not fit together.
    """

    shapes: Mapping[str, tuple[int, ...]]
    part: Part
    path: Path

    def __post_init__(self) -> None:
        if self.part.patch is None:
            if len({shape[0] for shape in self.shapes.values()}) > 1:
                raise DataError(
                    f"the fields of {self.path} differ in length",
                    found=", ".join(f"{key}: {shape[0]}" for key, shape in self.shapes.items()),
                    wanted="one length",
                    fix="name fields that belong together, or repair the file",
                )
            return
        spaces = {shape[-len(self.part.patch) :] for shape in self.shapes.values()}
        if len(spaces) > 1 or any(len(space) < len(self.part.patch) for space in spaces):
            raise DataError(
                f"the fields of {self.path} do not lie alike, as patches need",
                found=", ".join(f"{key}: {shape}" for key, shape in self.shapes.items()),
                wanted=f"the same last {len(self.part.patch)} axes",
            )
        if any(size < patch for size, patch in zip(self._space, self.part.patch, strict=True)):
            raise DataError(
                f"the arrays of {self.path} are smaller than a patch",
                found=str(self._space),
                wanted=f"at least {self.part.patch}",
            )

    def __len__(self) -> int:
        """Return the samples of the file."""
        if self.part.patch is None:
            return next(iter(self.shapes.values()))[0]
        return math.prod(self._counts)

    def cut(self, key: str) -> tuple[slice, ...]:
        """Return the wanted part of each row of a field, a slice with start and stop for each axis."""
        sizes = self.shapes[key][1:]
        cut = self.part.cut if len(self.part.cut) <= len(sizes) else ()
        found = []
        for one, size in itertools.zip_longest(cut, sizes, fillvalue=slice(None)):
            if not isinstance(size, int) or not isinstance(one, slice):
                continue
            start, stop, _ = one.indices(size)
            found.append(slice(start, max(start, stop)))
        return tuple(found)

    def patch(self, key: str, number: int) -> tuple[slice, ...]:
        """Return the place of a patch in a field's dataset; the axes before the grid's are whole."""
        if self.part.patch is None:
            raise IndexError("these samples are rows, not patches")
        places = []
        rest = number
        counts = self._counts
        for axis in reversed(range(len(counts))):
            rest, step = divmod(rest, counts[axis])
            begin = min(step * self._stride[axis], self._space[axis] - self.part.patch[axis])
            places.append(slice(begin, begin + self.part.patch[axis]))
        before = len(self.shapes[key]) - len(counts)
        return (*[slice(None)] * before, *reversed(places))

    def sample_shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a sample of a field."""
        if self.part.patch is None:
            return tuple(one.stop - one.start for one in self.cut(key))
        return (*self.shapes[key][: -len(self.part.patch)], *self.part.patch)

    @property
    def _space(self) -> tuple[int, ...]:
        return next(iter(self.shapes.values()))[-len(self.part.patch or ()) :]

    @property
    def _stride(self) -> tuple[int, ...]:
        return self.part.stride or self.part.patch or ()

    @property
    def _counts(self) -> tuple[int, ...]:
        """Patches along each axis; the last one ends with the array."""
        sizes = zip(self._space, self.part.patch or (), self._stride, strict=True)
        return tuple(1 + -(-(size - patch) // stride) for size, patch, stride in sizes)
