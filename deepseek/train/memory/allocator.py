"""How glibc hands out main memory while a budget must hold: every large tensor has pages of its own.

By default blocks up to 32 MiB come from one heap, and what is freed there stays with the process, with holes that no
later tensor fits in: measured 14% to 80% more than the live tensors, against 0 to 6% with this setting. The price is
fresh pages for each large tensor. What was allocated before (the model's weights in float32) leaves holes all the same,
which `trim` gives back: in 10 ms, for BERT-base 7% of the peak. On a GPU, or another C library, nothing changes.
Sources: mallopt(3), whose M_MMAP_THRESHOLD else moves with what is freed; malloc_trim(3).
"""

from __future__ import annotations

import ctypes
import platform
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
_LARGE = 256 << 10
HOLES = 1.8
"""How many times the live tensors a process may take while glibc keeps its default."""
_MAPPINGS = 1 << 20  # the kernel's own limit (vm.max_map_count) is lower and ends in the heap, not in an error


def give_large_blocks_back() -> bool:
    """From now on give the memory of large tensors back as they are freed; return whether that is possible here."""
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    done = libc.mallopt(_M_MMAP_THRESHOLD, _LARGE) and libc.mallopt(_M_TRIM_THRESHOLD, _LARGE)
    libc.mallopt(_M_TOP_PAD, 64 << 10)
    libc.mallopt(_M_MMAP_MAX, _MAPPINGS)
    trim()
    return bool(done)


def trim(*_: object) -> None:
    """Give free pages inside the heap back (only where `give_large_blocks_back` could); a hook of any arguments."""
    ctypes.CDLL(None).malloc_trim(0)
