"""What needs rows of several blocks: which rows are doubles, and the shuffled order; both by parts that fit in memory.

Dedup moves keys of 16 bytes, not rows: blocks keep their rows and learn which to drop. Shuffle draws a random key for
each row; part p of n takes the keys from p/n to (p+1)/n of their range out of all blocks. Not here: the
files (`spill`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepseek.data.etl.rows import Record, unpack
from deepseek.data.etl.spill import load, read_rows
from deepseek.data.etl.steps import Dedup
from deepseek.errors import DataError
from deepseek.files import atomic_path

DROP = np.dtype([("block", "<i8"), ("row", "<i8")])
ROWS_OF_PART = 1_000_000
_LOOK_AT = 4096


def block_folder(stage: Path, block: int) -> Path:
    """Return the folder of a block's spill."""
    return stage / f"{block:05d}"


def drops_file(stage: Path, part: int) -> Path:
    """Return the file of the rows to drop that a part found."""
    return stage / f"drops-{part:05d}.npy"


def find_equal(spills: Path, blocks: int, part: int, parts: int) -> NDArray[Any]:
    """Return the rows to drop among those whose keys are in a part of the range, sorted by block and row."""
    found, numbers = [], []
    for block in range(blocks):
        keys = load(block_folder(spills, block) / "keys.npy")
        first, last = _slice(np.asarray(keys["high"]), part, parts)
        found.append(np.asarray(keys[first:last]))
        numbers.append(np.full(last - first, block, dtype=np.int64))
    keys = np.concatenate(found)
    block_of = np.concatenate(numbers)
    order = np.lexsort((keys["row"], block_of, keys["low"], keys["high"]))
    keys, block_of = keys[order], block_of[order]
    again = np.flatnonzero((keys["high"][1:] == keys["high"][:-1]) & (keys["low"][1:] == keys["low"][:-1])) + 1
    drops = np.zeros(len(again), dtype=DROP)
    drops["block"], drops["row"] = block_of[again], keys["row"][again]
    return np.sort(drops, order=("block", "row"))


def find_similar(spills: Path, blocks: int, step: Dedup) -> NDArray[Any]:
    """Return the rows to drop whose text is like one before it, looking at all blocks in order."""
    from deepseek.data.cooker.dedup import DedupState

    state = DedupState("minhash" if step.method == "minhash" else "simhash", step.threshold)
    dropped: list[NDArray[Any]] = []
    held: list[str] = []
    places: list[tuple[int, int]] = []

    def look() -> None:
        if held:
            keep = state.add(held)
            dropped.append(np.array([place for place, good in zip(places, keep, strict=True) if not good], dtype=DROP))
            held.clear()
            places.clear()

    for block in range(blocks):
        for row, record in enumerate(read_rows(block_folder(spills, block))):
            held.append(record[3][step.key[0]])
            places.append((block, row))
            if len(held) >= _LOOK_AT:
                look()
    look()
    return np.concatenate([np.zeros(0, dtype=DROP), *dropped])


def save_drops(path: Path, drops: NDArray[Any]) -> None:
    """Write the rows to drop, atomically. Raises StorageError."""
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, drops)


def kept_rows(spills: Path, drops: Path, parts: int, block: int) -> Iterator[Record]:
    """Yield the records of a block that are no doubles, in order."""
    gone: set[int] = set()
    for part in range(parts):
        rows = load(drops_file(drops, part))
        blocks = np.asarray(rows["block"])
        first, last = np.searchsorted(blocks, [block, block + 1])
        gone.update(np.asarray(rows["row"][first:last]).tolist())
    for row, record in enumerate(read_rows(block_folder(spills, block))):
        if row not in gone:
            yield record


def shuffled_rows(spills: Path, blocks: int, part: int, parts: int) -> Iterator[Record]:
    """Yield the records of part `part` of `parts` of a shuffle, in order of their keys."""
    data = bytearray()
    all_keys, starts, sizes = [], [], []
    for block in range(blocks):
        folder = block_folder(spills, block)
        keys = load(folder / "keys.npy")
        first, last = _slice(keys, part, parts)
        if first == last:
            continue
        offsets = np.asarray(load(folder / "offsets.npy")[first : last + 1]).astype(np.int64)
        with open(folder / "rows.bin", "rb") as handle:
            handle.seek(int(offsets[0]))
            piece = handle.read(int(offsets[-1] - offsets[0]))
        all_keys.append(np.asarray(keys[first:last]))
        starts.append(offsets[:-1] - offsets[0] + len(data))
        sizes.append(np.diff(offsets))
        data += piece
    if not all_keys:
        return
    order = np.argsort(np.concatenate(all_keys), kind="stable")
    view = memoryview(data)
    begin, size = np.concatenate(starts)[order], np.concatenate(sizes)[order]
    for start, length in zip(begin.tolist(), size.tolist(), strict=True):
        try:
            yield unpack(view[start : start + length].tobytes())
        except ValueError as error:
            raise DataError(f"{spills} is damaged", found=str(error)[:200], fix="run with resume=False") from None


def _slice(keys: NDArray[Any], part: int, parts: int) -> tuple[int, int]:
    """Return where the keys of a part of the range of 64 bits begin and end in sorted keys."""
    low, high = (part << 64) // parts, ((part + 1) << 64) // parts
    first = int(np.searchsorted(keys, np.uint64(low)))
    last = len(keys) if high >= 1 << 64 else int(np.searchsorted(keys, np.uint64(high)))
    return first, last
