"""Memory that a supervisor and its workers share: a file without a name, open in all of them.

It is gone with the last of them, however they end. Not here: what stands in it (see `monitoring.board` and
`security.rates`).
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from typing import Self


class SharedFile:
    """A descriptor, and the file behind it as memory; the descriptor is closed with the object."""

    def __init__(self, descriptor: int) -> None:
        """Take over a descriptor, such as a worker has inherited."""
        self.descriptor = descriptor
        self._close = weakref.finalize(self, os.close, descriptor)
        self.memory = mmap.mmap(descriptor, 0)

    @classmethod
    def make(cls, name: str, size: int) -> Self:
        """Return a file of `size` zeros that no path leads to; only pages that are used take memory.

        On Linux it lies in memory (memfd_create(2)), elsewhere in the folder for temporary files.
        """
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create(f"deepseek-{name}")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, size)
        return cls(descriptor)

    def close(self) -> None:
        """Let the memory go, in this process."""
        self.memory.close()
        self._close()
