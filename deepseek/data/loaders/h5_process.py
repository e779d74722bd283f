"""What one process has open of a set of HDF5 files: handles, a cache of unpacked blocks, threads that unpack."""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from deepseek.data.columns import StringColumn
from deepseek.data.loaders.h5_chunks import BlockReader, Rows
from deepseek.data.loaders.h5_file import Field, open_h5
from deepseek.data.loaders.h5_grid import Grid
from deepseek.data.pipeline.stage import Sample
from deepseek.errors import DataError

_OPEN_FILES = 32


@dataclass(frozen=True)
class H5Source:
    """What is to be read, the same in every process; see `H5Dataset` for the settings."""

    paths: StringColumn
    fields: tuple[Field, ...]
    grids: tuple[Grid, ...]
    cache_bytes: int
    threads: int | None
    swmr: bool


class _Open(NamedTuple):
    handle: Any
    descriptor: int
    readers: dict[str, BlockReader]


class ProcessFiles:
    """Reads samples of `source`; to be used in the process `pid` alone, by any of its threads."""

    def __init__(self, source: H5Source) -> None:
        self.pid = os.getpid()
        self._source = source
        self._lock = threading.Lock()
        self._files: OrderedDict[int, _Open] = OrderedDict()
        self._cache: OrderedDict[tuple[int, str, int], Rows] = OrderedDict()
        self._cached = 0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = source.threads or (1 if parent_process() is not None else min(4, cores))
        self._executor = ThreadPoolExecutor(threads, "deepseek-h5") if threads > 1 else None

    def close(self) -> None:
        """Close files and threads."""
        with self._lock:
            for opened in self._files.values():
                opened.handle.close()
            self._files.clear()
            self._cache.clear()
            self._cached = 0
            if self._executor is not None:
                self._executor.shutdown()

    def samples(self, places: Sequence[tuple[int, int]]) -> list[Sample]:
        """Return the samples at (file, row or patch). Raises DataError naming the file."""
        samples: list[Sample] = [{} for _ in places]
        with self._lock:
            for file in sorted({file for file, _ in places}):
                mine = [at for at, place in enumerate(places) if place[0] == file]
                numbers = [places[at][1] for at in mine]
                opened = self._opened(file)
                for field in self._source.fields:
                    for at, value in zip(mine, self._values(file, opened, field, numbers), strict=True):
                        samples[at][field.key] = value
        return samples

    def _values(self, file: int, opened: _Open, field: Field, numbers: Sequence[int]) -> Sequence[Any]:
        """Return a field's values of rows (or patches) of one file."""
        grid = self._source.grids[file]
        if grid.part.patch is not None:
            return [_tensor(_select(opened.handle, field, grid.patch(field.key, number))) for number in numbers]
        if not field.numeric:
            return [_plain(_select(opened.handle, field, number)) for number in numbers]
        reader = opened.readers[field.key]
        if reader.rows == 1 or self._source.swmr or reader.block_bytes > self._source.cache_bytes:
            return [_tensor(reader.row(number, opened.descriptor)) for number in numbers]
        return self._from_blocks(file, field.key, opened, numbers)

    def _from_blocks(self, file: int, key: str, opened: _Open, rows: Sequence[int]) -> list[Any]:
        reader = opened.readers[key]
        places: dict[int, list[int]] = {}
        for at, row in enumerate(rows):
            places.setdefault(row // reader.rows, []).append(at)
        values: list[Any] = [None] * len(rows)
        at_once = max(1, self._source.cache_bytes // max(1, reader.block_bytes))
        for group in _batched(places, at_once):
            for number, block in self._blocks(file, key, opened, group).items():
                inside = [rows[at] - number * reader.rows for at in places[number]]
                copies = _tensor(block[inside])  # the block itself is not handed out: it stays as it is
                for at, value in zip(places[number], copies, strict=True):
                    values[at] = value
        return values

    def _blocks(self, file: int, key: str, opened: _Open, numbers: Iterable[int]) -> dict[int, Rows]:
        """Return blocks by number, out of the cache or the file."""
        found, missing = {}, []
        for number in numbers:
            block = self._cache.get((file, key, number))
            if block is None:
                missing.append(number)
            else:
                self._cache.move_to_end((file, key, number))
                found[number] = block
        for number, block in zip(
            missing, opened.readers[key].blocks(missing, opened.descriptor, self._executor), strict=True
        ):
            found[number] = block
            self._cache[file, key, number] = block
            self._cached += block.nbytes
        while self._cached > self._source.cache_bytes:
            self._cached -= self._cache.popitem(last=False)[1].nbytes
        return found

    def _opened(self, file: int) -> _Open:
        found = self._files.get(file)
        if found is not None:
            self._files.move_to_end(file)
            return found
        if len(self._files) >= _OPEN_FILES:
            self._files.popitem(last=False)[1].handle.close()
        source, grid = self._source, self._source.grids[file]
        path = Path(source.paths[file])
        handle = open_h5(path, source.swmr, source.cache_bytes if grid.part.patch is not None else 0)
        readers = {
            field.key: BlockReader(path, handle[field.name], grid.cut(field.key))
            for field in source.fields
            if field.numeric and grid.part.patch is None
        }
        descriptor = handle.id.get_vfd_handle() if handle.driver == "sec2" else -1
        self._files[file] = found = _Open(handle, descriptor, readers)
        return found


def _select(handle: Any, field: Field, place: Any) -> Any:
    try:
        return handle[field.name][place]
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise DataError(
            f"the dataset '{field.name}' of {handle.filename} is damaged",
            found=str(error),
            fix="write or copy the file again",
        ) from error


def _batched(values: Iterable[int], size: int) -> Iterator[list[int]]:
    iterator = iter(values)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _tensor(values: Any) -> torch.Tensor:
    array = np.asarray(values)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(array if array.flags.owndata and array.flags.writeable else array.copy())


def _plain(value: Any) -> Any:
    """Return text as str, and a ragged row of numbers as a tensor."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return _tensor(value) if isinstance(value, np.ndarray) and value.dtype.kind in "biufc" else value
