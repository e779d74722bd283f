"""An array that rows are appended to, its room a quarter larger each time it is full."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)


class Growing(Generic[Scalar]):
    """Rows like those of `rows`, which it begins with."""

    def __init__(self, rows: NDArray[Scalar]) -> None:
        self._room = rows
        self._count = len(rows)

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> NDArray[Scalar]:
        """All rows, a view that the next `append` may leave behind."""
        return self._room[: self._count]

    def append(self, rows: NDArray[Scalar]) -> None:
        """Add `rows` behind."""
        wanted = self._count + len(rows)
        if wanted > len(self._room):
            room = np.empty((max(wanted, len(self._room) * 5 // 4), *self._room.shape[1:]), dtype=self._room.dtype)
            room[: self._count] = self.rows
            self._room = room
        self._room[self._count : wanted] = rows
        self._count = wanted
