"""How many documents a line occurs in, counted in fixed memory: a count-min sketch.

Source: Cormode and Muthukrishnan 2005, "An improved data stream summary: the count-min sketch and its applications",
doi:10.1016/j.jalgor.2003.12.001. An answer is never too low; it is too high by more than (documents' lines) * e / width
with a chance of e**-depth.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepseek.data.cooker.hashing import Hashes
from deepseek.errors import DataError
from deepseek.files import atomic_path

_DEPTH = 4
_WIDTH = 1 << 20


class LineCounts:
    """A table of counters, 16 MB whatever is counted."""

    def __init__(self) -> None:
        self._table: NDArray[np.uint32] = np.zeros((_DEPTH, _WIDTH), dtype=np.uint32)
        self.documents = 0

    def add_documents(self, lines: list[Hashes], documents: int) -> None:
        """Count the lines of this many further documents: of each that has some, its own lines once, uint64."""
        self.documents += documents
        if lines:
            together = np.concatenate(lines)
            for row, places in zip(self._table, self._places(together), strict=True):
                np.add.at(row, places, 1)

    def count(self, lines: Hashes) -> NDArray[np.uint32]:
        """Return for each line in how many documents it occurred, at most too high."""
        return np.min([row[places] for row, places in zip(self._table, self._places(lines), strict=True)], axis=0)  # type: ignore[no-any-return]

    def save(self, path: Path) -> None:
        """Write the counters to a file, atomically."""
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            np.savez(handle, table=self._table, documents=np.int64(self.documents))

    @classmethod
    def load(cls, path: Path) -> LineCounts:
        """Read what `save` wrote. Raises DataError."""
        counts = cls()
        try:
            with np.load(path, allow_pickle=False) as arrays:
                table, counts.documents = arrays["table"], int(arrays["documents"])
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise DataError(f"{path} is damaged", found=str(error), fix="start over with resume=False") from None
        if table.shape != (_DEPTH, _WIDTH) or table.dtype != np.uint32:
            raise DataError(f"{path} is damaged", found=f"{table.dtype} {table.shape}", fix="start over: resume=False")
        counts._table = table
        return counts

    @staticmethod
    def _places(lines: Hashes) -> list[NDArray[np.uint64]]:
        """Return each row's counter for each line: the hash's two halves combined (Kirsch and Mitzenmacher 2008)."""
        low, high = lines & np.uint64(0xFFFFFFFF), lines >> np.uint64(32)
        return [(low + np.uint64(row) * (high | np.uint64(1))) % np.uint64(_WIDTH) for row in range(_DEPTH)]
