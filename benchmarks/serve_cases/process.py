"""A server in a process of its own, and where client and server run: one core each where there are two.

Not here: the servers (see `servers`).
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_CORES = sorted(os.sched_getaffinity(0))
CLIENT_CORE, SERVER_CORE = _CORES[0], _CORES[-1]


def pin_client() -> None:
    """Keep this process on the client's core, and its collector off: its pauses would count as the server's."""
    os.sched_setaffinity(0, {CLIENT_CORE})
    gc.disable()


class Server(NamedTuple):
    """A running server."""

    port: int
    pid: int

    def cpu_seconds(self) -> float:
        """Return the processor time it took so far: what a request costs, whatever else the machine does."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def server(kind: str, folder: Path, *names: str) -> Iterator[Server]:
    """Start a server on its core; it ends with the block."""
    command = [sys.executable, "-m", "benchmarks.serve_cases.servers", kind, str(folder), str(SERVER_CORE), *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        line = process.stdout.readline() if process.stdout is not None else ""
        if not line.startswith("ready"):
            raise RuntimeError(f"the server '{kind}' did not start: exit code {process.poll()}")
        yield Server(int(line.split()[1]), process.pid)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with whatever it started
        process.wait(30)
