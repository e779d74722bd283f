"""Memory that two processes see: the state is copied into it, and the writer process writes from it.

It is a memfd (memfd_create(2), Linux), kept between saves so that its pages are there; elsewhere it is memory of this
process alone. Pages are fetched ahead (`populate`): a first touch costs many times what a copy does.
Free of torch: the writer process imports it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14: fetches pages and changes no byte of them
_PIECE = 8 << 20


class SharedMemory:
    """Grows as needed and never shrinks; `descriptor` is what another process maps, None where there is none."""

    def __init__(self) -> None:
        self.descriptor: int | None = None
        self.size = 0
        self.map: mmap.mmap | None = None

    def reserve(self, size: int) -> mmap.mmap:
        """Return a mapping of at least `size` bytes; one returned before stays valid, over the same bytes."""
        if self.map is None or size > self.size:
            if hasattr(os, "memfd_create"):
                if self.descriptor is None:
                    self.descriptor = os.memfd_create("deepseek-checkpoint")
                os.ftruncate(self.descriptor, size)
                self.map = mmap.mmap(self.descriptor, size)
            else:
                self.map = mmap.mmap(-1, size)
            self.size = size
            if hasattr(mmap, "MADV_DONTFORK"):
                self.map.madvise(mmap.MADV_DONTFORK)  # workers of a data loader have no use for it
        return self.map

    def close(self) -> None:
        """Give the memory back; mappings in use live until their last user is gone."""
        if self.descriptor is not None:
            os.close(self.descriptor)
        self.descriptor, self.map, self.size = None, None, 0


def populate(memory: mmap.mmap, size: int) -> bool:
    """Fetch the pages of the first `size` bytes, piece by piece, other threads running meanwhile; False if impossible.

    The bytes stay as they are, whoever writes them at the same time.
    """
    if sys.platform != "linux":
        return False
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    anchor = ctypes.c_char.from_buffer(memory)
    address = ctypes.addressof(anchor)
    return all(
        advise(address + begin, min(_PIECE, size - begin), _POPULATE_WRITE) == 0 for begin in range(0, size, _PIECE)
    )
