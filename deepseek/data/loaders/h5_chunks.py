"""Rows of an HDF5 dataset read in whole blocks: all chunks that hold the same rows, each read and unpacked once.

Chunks without a filter, or with gzip and byte shuffle, are read from the file directly and unpacked by zlib, which lets
threads work side by side where the HDF5 library holds one lock; every other layout goes through h5py. The filters:
https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html (filter pipeline message).
"""

from __future__ import annotations

import itertools
import math
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepseek.errors import DataError
from deepseek.lazy import require

Rows = NDArray[Any]
_DEFLATE, _SHUFFLE = 1, 2


class _Chunk(NamedTuple):
    """A stored chunk: where in the dataset it begins, and its bytes in the file."""

    corner: tuple[int, ...]
    skipped_filters: int
    offset: int
    size: int


class BlockReader:
    """Blocks of rows of one dataset of an open file; `cut` is the part of each row that is wanted, an axis each."""

    def __init__(self, path: Path, dataset: Any, cut: Sequence[slice]) -> None:
        self._path = path
        self._dataset = dataset
        self._cut = tuple(cut)
        self._count = int(dataset.shape[0])
        self.row_shape = tuple(part.stop - part.start for part in self._cut)
        self.rows = int(dataset.chunks[0]) if dataset.chunks else 1
        self.block_bytes = self.rows * math.prod(self.row_shape) * dataset.dtype.itemsize
        self._filters = _plain_filters(dataset)
        offset = dataset.id.get_offset() if dataset.chunks is None and self._filters is not None else None
        whole = all(part == slice(0, size) for part, size in zip(self._cut, dataset.shape[1:], strict=True))
        self._row_offset = offset if whole else None

    def blocks(self, numbers: Sequence[int], descriptor: int, executor: Executor | None) -> list[Rows]:
        """Return blocks by their numbers, (rows, *row_shape) each, the last one shorter where the dataset ends.

        Raises DataError naming the file for chunks that are truncated or damaged.
        """
        if self._dataset.chunks is None or self._filters is None:
            return [self._by_library(slice(number * self.rows, (number + 1) * self.rows)) for number in numbers]
        blocks: list[Rows] = []
        jobs: list[tuple[Rows, _Chunk]] = []
        for number in numbers:
            begin = number * self.rows
            block = np.full((min(self.rows, self._count - begin), *self.row_shape), self._fill(), self._dataset.dtype)
            blocks.append(block)
            jobs += [(block, chunk) for chunk in self._stored_chunks(begin)]
        run: Callable[..., Any] = map if executor is None or len(jobs) == 1 else executor.map
        for _ in run(lambda job: self._unpack_into(job[0], job[1], descriptor), jobs):
            pass
        return blocks

    def row(self, index: int, descriptor: int) -> Any:
        """Return one row, without its block."""
        if self._row_offset is not None:
            out = np.empty(self.row_shape, self._dataset.dtype)
            at = self._row_offset + index * out.nbytes
            if out.nbytes and _read_into(descriptor, out, at) != out.nbytes:
                raise self._damaged(f"row {index} lies beyond the end of the file")
            return out
        return self._by_library(index)

    def _by_library(self, rows: int | slice) -> Any:
        try:
            return self._dataset[(rows, *self._cut)]
        except (OSError, RuntimeError, ValueError) as error:
            raise self._damaged(str(error)) from error

    def _fill(self) -> Any:
        return self._dataset.fillvalue

    def _stored_chunks(self, begin: int) -> list[_Chunk]:
        """Return the chunks of the rows from `begin` on that overlap the cut and were ever written."""
        axes = [
            range(part.start // size * size, part.stop, size)
            for part, size in zip(self._cut, self._dataset.chunks[1:], strict=True)
        ]
        found = []
        for corner in itertools.product((begin,), *axes):
            try:
                info = self._dataset.id.get_chunk_info_by_coord(corner)
            except (OSError, RuntimeError, ValueError) as error:
                raise self._damaged(str(error)) from error
            if info.byte_offset is not None:
                found.append(_Chunk(corner, info.filter_mask, info.byte_offset, info.size))
        return found

    def _unpack_into(self, block: Rows, chunk: _Chunk, descriptor: int) -> None:
        shape, dtype = self._dataset.chunks, self._dataset.dtype
        data = self._unpacked(chunk, math.prod(shape) * dtype.itemsize, descriptor)
        values = np.frombuffer(data, dtype).reshape(shape)
        target: list[slice] = [slice(0, len(block))]
        source: list[slice] = [slice(0, len(block))]
        for part, corner, size in zip(self._cut, chunk.corner[1:], shape[1:], strict=True):
            low, high = max(part.start, corner), min(part.stop, corner + size)
            target.append(slice(low - part.start, high - part.start))
            source.append(slice(low - corner, high - corner))
        block[tuple(target)] = values[tuple(source)]

    def _unpacked(self, chunk: _Chunk, size: int, descriptor: int) -> Any:
        """Return the `size` bytes of a chunk. Nothing larger is made, whatever the file says."""
        limit = 2 * size + 4096
        if chunk.size > limit:
            raise self._damaged(f"a chunk of {chunk.size} bytes, wanted at most {limit}")
        data: Any = bytearray(chunk.size)
        if _read_into(descriptor, data, chunk.offset) != chunk.size:
            raise self._damaged("a chunk lies beyond the end of the file")
        filters = self._filters or ()
        for place in reversed(range(len(filters))):
            if chunk.skipped_filters >> place & 1:
                continue
            if filters[place] == _DEFLATE:
                try:
                    data = zlib.decompressobj().decompress(data, size + 1)
                except zlib.error as error:
                    raise self._damaged(f"a gzip chunk: {error}") from error
            else:
                width = self._dataset.dtype.itemsize
                if memoryview(data).nbytes == size:  # byte k of all elements lies together
                    data = np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(width, -1).T)
        found = memoryview(data).nbytes
        if found != size:
            raise self._damaged(f"a chunk of {found} bytes, wanted {size}")
        return data

    def _damaged(self, found: str) -> DataError:
        return DataError(
            f"the dataset '{self._dataset.name}' of {self._path} is damaged",
            found=found,
            fix="write or copy the file again",
        )


def _read_into(descriptor: int, buffer: Any, offset: int) -> int:
    """Fill `buffer` from `offset` of the file on; return how many bytes there were."""
    view = buffer.reshape(-1).view(np.uint8).data if isinstance(buffer, np.ndarray) else memoryview(buffer)
    done = 0
    while done < len(view):
        got = os.preadv(descriptor, [view[done:]], offset + done)
        if got == 0:
            break
        done += got
    return done


def _plain_filters(dataset: Any) -> tuple[int, ...] | None:
    """Return the filters of a dataset whose stored bytes we can unpack ourselves, else None."""
    h5py = require("h5py", "data")
    plist = dataset.id.get_create_plist()
    layout = plist.get_layout()
    filters = tuple(plist.get_filter(place)[0] for place in range(plist.get_nfilters()))
    known = (
        hasattr(os, "preadv")
        and layout in (h5py.h5d.CHUNKED, h5py.h5d.CONTIGUOUS)
        and plist.get_external_count() == 0
        and dataset.file.userblock_size == 0
        and dataset.file.driver == "sec2"
        and set(filters) <= {_DEFLATE, _SHUFFLE}
        and _is_plain(dataset.id.get_type(), dataset.dtype, h5py)
    )
    return filters if known else None


def _is_plain(stored: Any, dtype: np.dtype[Any], h5py: Any) -> bool:
    """Return whether the stored numbers are, byte for byte, those of `dtype`."""
    if dtype.kind not in "iuf" or stored.get_class() not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT):
        return False
    return bool(stored.get_size() == dtype.itemsize and stored.get_precision() == 8 * dtype.itemsize)
