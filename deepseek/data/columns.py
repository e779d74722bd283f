"""Strings in two arrays instead of a list of objects: what an index of millions of paths should be kept in.

A column is read-only, pickles as its two arrays, and costs its text and 8 bytes a row. Workers that are forked share
its memory, since reading a row touches no reference count of the others.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray


class StringColumn:
    """A read-only sequence of strings. Lone surrogates, as file names may have, are kept."""

    def __init__(self, values: Iterable[str]) -> None:
        data, ends = bytearray(), array("q", [0])
        for value in values:
            data += value.encode("utf-8", "surrogatepass")
            ends.append(len(data))
        self._data: NDArray[np.uint8] = np.frombuffer(data, dtype=np.uint8)
        self._ends: NDArray[np.int64] = np.frombuffer(ends, dtype=np.int64)
        self._data.flags.writeable = self._ends.flags.writeable = False

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"no row {index} in a column of {len(self)}")
        row = index % len(self)
        return self._data[self._ends[row] : self._ends[row + 1]].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    @property
    def nbytes(self) -> int:
        """The memory of the two arrays, in bytes."""
        return self._data.nbytes + self._ends.nbytes
