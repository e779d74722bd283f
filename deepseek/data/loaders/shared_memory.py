"""Batches from a worker to its parent: the data of tensors and arrays in shared memory, the rest pickled.

Segments are anonymous files (memfd_create(2)) handed over as descriptors (SCM_RIGHTS, unix(7)): they have no name that
a killed process could leave behind and are not limited by the size of /dev/shm. Tensors lie in the segment itself, with
no copy on the parent's side; when the last of a batch is gone, its segment is used again, so memory is bounded by the
batches that are held. Out-of-band pickling is PEP 574. Where a system has no memfd, the data goes through the pipe.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import weakref
from collections import deque
from collections.abc import Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

HAS_SEGMENTS = hasattr(os, "memfd_create")
_ALIGN = 64
_SMALLEST = 1 << 16


class _Segment(NamedTuple):
    number: int
    memory: mmap.mmap


class _Header(NamedTuple):
    """What goes before the data: `segment` is None where the data follows through the pipe."""

    body: bytes
    places: tuple[tuple[int, int], ...]  # (offset, length) of each buffer
    segment: int | None = None
    new_bytes: int = 0  # the size of a segment that comes with this message for the first time
    dropped: int | None = None  # a segment that is not used any more


class Outbox:
    """The worker's side: packs values into segments of its own."""

    def __init__(self, connection: Connection, segments: bool = HAS_SEGMENTS) -> None:
        self._connection = connection
        self._segments = segments
        self._free: list[_Segment] = []
        self._taken: dict[int, _Segment] = {}
        self._made = 0

    def send(self, value: Any) -> None:
        """Send a value. What can't be pickled raises before anything is sent."""
        body, buffers = dumps(value)
        places, total = [], 0
        for buffer in buffers:
            places.append((total, buffer.nbytes))
            total += -(-buffer.nbytes // _ALIGN) * _ALIGN
        if total == 0 or not self._segments:
            self._connection.send_bytes(pickle.dumps(_Header(body, tuple(places))))
            for buffer in buffers:
                if buffer.nbytes:
                    self._connection.send_bytes(buffer)
            return
        segment, handle, dropped = self._take(total)
        for (offset, length), buffer in zip(places, buffers, strict=True):
            segment.memory[offset : offset + length] = buffer
        new_bytes = 0 if handle is None else len(segment.memory)
        header = _Header(body, tuple(places), segment.number, new_bytes, dropped)
        self._connection.send_bytes(pickle.dumps(header))
        if handle is not None:
            reduction.send_handle(self._connection, handle, os.getppid())
            os.close(handle)

    def release(self, numbers: Sequence[int]) -> None:
        """Take back segments that the parent holds no tensor of."""
        self._free += [self._taken.pop(number) for number in numbers]

    def _take(self, size: int) -> tuple[_Segment, int | None, int | None]:
        """Return a segment of at least `size`, its descriptor if it is new, and the number of one given up for it."""
        fitting = [segment for segment in self._free if len(segment.memory) >= size]
        if fitting:
            segment = min(fitting, key=lambda segment: len(segment.memory))
            self._free.remove(segment)
            self._taken[segment.number] = segment
            return segment, None, None
        dropped = None
        if self._free:  # one that is too small makes room for the new one
            old = self._free.pop(0)
            old.memory.close()
            dropped = old.number
        size = max(_SMALLEST, -(-(size + size // 8) // mmap.PAGESIZE) * mmap.PAGESIZE)
        handle = os.memfd_create("deepseek-batch", os.MFD_CLOEXEC)
        os.ftruncate(handle, size)
        segment = _Segment(self._made, mmap.mmap(handle, size))
        self._made += 1
        self._taken[segment.number] = segment
        return segment, handle, dropped


class Inbox:
    """The parent's side: values whose tensors lie in the worker's segments.

    `released` fills with the numbers of segments that nobody reads any more, to be sent back to the worker.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._segments: dict[int, mmap.mmap] = {}
        self.released: deque[int] = deque()

    def receive(self) -> Any:
        """Return the next value. Raises EOFError or OSError when the worker is gone."""
        header: _Header = pickle.loads(self._connection.recv_bytes())
        if header.segment is None:
            data = [bytearray(self._connection.recv_bytes()) if length else b"" for _, length in header.places]
            return pickle.loads(header.body, buffers=data)
        if header.dropped is not None:
            del self._segments[header.dropped]
        if header.new_bytes:
            handle = reduction.recv_handle(self._connection)
            try:
                self._segments[header.segment] = mmap.mmap(handle, header.new_bytes)
            finally:
                os.close(handle)
        # every tensor of the batch keeps this array alive, and its end is what tells that the segment is free
        lease: NDArray[np.uint8] = np.frombuffer(self._segments[header.segment], dtype=np.uint8)
        weakref.finalize(lease, self.released.append, header.segment).atexit = False
        buffers = [lease[offset : offset + length].data for offset, length in header.places]
        return pickle.loads(header.body, buffers=buffers)


def dumps(value: Any) -> tuple[bytes, list[memoryview]]:
    """Return `value` pickled, and the data of its tensors and arrays as flat buffers beside it."""
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=buffers.append).dump(value)
    return file.getvalue(), [buffer.raw() for buffer in buffers]


class _Pickler(pickle.Pickler):
    """Takes the data of plain tensors out of the pickle, as numpy does with that of its arrays."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not Tensor or value.layout is not torch.strided or value.device.type != "cpu":
            return NotImplemented
        if value.is_quantized:
            return NotImplemented
        flat = value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
        data = pickle.PickleBuffer(flat.view(torch.uint8).numpy().data) if flat.numel() else None
        return _tensor, (data, value.dtype, tuple(value.shape))


def _tensor(data: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if data is None:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)
