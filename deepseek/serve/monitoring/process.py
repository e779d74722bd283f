"""What this process uses: memory, processor time, threads, file descriptors; from Linux's /proc, less elsewhere.

Source: proc(5). Names are those of Prometheus' client libraries.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc/self")
_STARTED = time.time()


def process_samples() -> Iterator[tuple[str, float]]:
    """Yield name and value of what this system tells."""
    times = os.times()
    yield "process_cpu_seconds_total", times.user + times.system
    yield "process_start_time_seconds", _STARTED
    try:
        fields = (_PROC / "statm").read_text(encoding="ascii").split()
        page = os.sysconf("SC_PAGE_SIZE")
        yield "process_virtual_memory_bytes", int(fields[0]) * page
        yield "process_resident_memory_bytes", int(fields[1]) * page
        yield "process_threads", _threads()
        yield "process_open_fds", len(os.listdir(_PROC / "fd"))
    except (OSError, ValueError, IndexError):
        yield "process_threads", threading.active_count()
    try:
        import resource

        yield "process_max_fds", resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (ImportError, OSError):
        return


def _threads() -> int:
    """Return the threads of the whole process, also those that no Python code started."""
    stat = (_PROC / "stat").read_text(encoding="ascii", errors="replace")
    return int(stat.rpartition(")")[2].split()[17])
