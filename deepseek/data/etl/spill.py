"""Rows that wait between two stages: in their order for dedup, sorted by a random key for shuffle.

A spill is a folder: `rows.bin` (packed records end to end), `offsets.npy` (rows + 1,) int64 and `keys.npy`. It appears
whole or not at all. Not here: finding duplicates and merging (`exchange`).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from deepseek.data.etl.rows import Record, hash_of, key_getter, pack, unpack
from deepseek.data.etl.steps import Dedup, Shuffle
from deepseek.data.record_forms import BadRecord
from deepseek.errors import DataError

KEY = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])
_AT_ONCE = 1 << 20
_FIX = "run again with resume=False"


class SpillWriter:
    """Writes the records of block `block` into `folder`, which exists and is made whole by the caller."""

    def __init__(self, folder: Path, block: int, exchange: Dedup | Shuffle) -> None:
        self._folder, self._block, self._exchange = folder, block, exchange
        exact = isinstance(exchange, Dedup) and exchange.method == "exact"
        self._key = key_getter(exchange.key) if exact and isinstance(exchange, Dedup) else None
        self._text = exchange.key[0] if isinstance(exchange, Dedup) and not exact else None
        self._hashes: bytearray | None = bytearray() if exact else None
        self._ends = array("q", [0])
        self._file: IO[bytes] = open(folder / "rows.bin", "wb", buffering=_AT_ONCE)

    def add_all(self, records: list[Record], refuse: Callable[[Record, BadRecord], None]) -> int:
        """Add records, return how many; `refuse` is called with those that can't be kept or have no key."""
        before = len(self._ends)
        for record in records:
            try:
                self._add(record)
            except BadRecord as bad:
                refuse(record, bad)
        return len(self._ends) - before

    def _add(self, record: Record) -> None:
        if self._text is not None and not isinstance(record[3].get(self._text), str):
            raise BadRecord(f"no text in the column '{self._text}'", type(record[3].get(self._text)).__name__)
        data = pack(record)
        key = b"" if self._key is None else self._key(record[3])
        if self._hashes is not None:
            self._hashes += hash_of(key)
        self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))

    def close(self) -> tuple[int, int]:
        """Finish the files; return (rows, bytes)."""
        self._file.close()
        ends = np.array(self._ends, dtype=np.int64)
        if isinstance(self._exchange, Shuffle):
            ends = self._sort(ends, self._exchange.seed)
        elif self._hashes is not None:
            keys = np.zeros(len(ends) - 1, dtype=KEY)
            words = np.frombuffer(bytes(self._hashes), dtype="<u8").reshape(-1, 2)
            keys["high"], keys["low"], keys["row"] = words[:, 0], words[:, 1], np.arange(len(words))
            np.save(self._folder / "keys.npy", np.sort(keys, order=("high", "low", "row")))
        np.save(self._folder / "offsets.npy", ends)
        return len(ends) - 1, int(ends[-1])

    def discard(self) -> None:
        """Close the file; the caller removes the folder."""
        self._file.close()

    def _sort(self, ends: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """Bring the rows into the order of their keys, which follow from (seed, block, row) alone."""
        bits = np.random.Philox(key=np.array([seed, self._block], dtype=np.uint64))
        keys = np.asarray(bits.random_raw(len(ends) - 1), dtype="<u8")
        order = np.argsort(keys, kind="stable")
        np.save(self._folder / "keys.npy", keys[order])
        sizes = np.diff(ends)[order]
        unsorted, target = self._folder / "rows.bin", self._folder / "sorted.bin"
        if len(order):
            data = np.memmap(unsorted, dtype=np.uint8, mode="r")
            with open(target, "wb", buffering=_AT_ONCE) as handle:
                for row in order:
                    handle.write(data[ends[row] : ends[row + 1]].data)
            del data
            target.replace(unsorted)
        return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])


def load(path: Path) -> NDArray[Any]:
    """Return an array of a spill, mapped from disk. Raises DataError where it is gone or damaged."""
    try:
        loaded: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return loaded
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} can't be read", found=str(error)[:200], fix=_FIX) from None


def read_rows(folder: Path, first: int = 0, last: int | None = None) -> Iterator[Record]:
    """Yield the records `first`..`last` of a spill. Raises DataError where it is damaged."""
    offsets = np.asarray(load(folder / "offsets.npy"))[first : None if last is None else last + 1]
    try:
        with open(folder / "rows.bin", "rb") as handle:
            handle.seek(int(offsets[0]))
            for size in np.diff(offsets).tolist():
                yield unpack(handle.read(size))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is damaged", found=str(error)[:200], fix=_FIX) from None
