"""Hands checkpoints to whoever writes them behind training's back: a process for large states, a thread for small ones.

One write at a time. A process has its own interpreter lock and its own priority; for a few MB it is not worth starting,
and a thread does. A writer that died is noticed at once, and the next write starts a new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from deepseek.checkpoint.commit import WriteJob, memory_source, write_checkpoint
from deepseek.checkpoint.shared_memory import SharedMemory, populate
from deepseek.errors import CheckpointError, StorageError

PROCESS_FROM = 16 << 20
"""Bytes of a state from which on a process writes it."""

_ROOT = str(Path(__file__).parents[2])
_START = "import sys; sys.path.insert(0, sys.argv[1]); from deepseek.checkpoint.writer import main; main({}, {})"


class BackgroundWriter:
    """Writes what lies in `memory`. What goes wrong is raised by the returned future's `result()`."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self, size: int) -> Future[float]:
        """Fetch the first `size` bytes of the memory, so that the first copy finds its pages."""
        return self._thread.submit(self._prepare, size)

    def write(self, job: WriteJob, size: int, ready: Callable[[], None]) -> Future[float]:
        """Call `ready` (it waits for copies that are still under way), then write the first `size` bytes as `job`."""
        return self._thread.submit(self._write, job, size, ready)

    def close(self) -> None:
        """Wait for the write in progress and end the process."""
        self._thread.shutdown(wait=True)
        self._end_process()

    @property
    def pid(self) -> int | None:
        """Return the process that writes, None while there is none."""
        return None if self._process is None else self._process.pid

    def _prepare(self, size: int) -> float:
        if self._by_process(size):
            self._ask({"memory": size})
        if self._memory.map is not None:
            populate(self._memory.map, size)
        return 0.0

    def _write(self, job: WriteJob, size: int, ready: Callable[[], None]) -> float:
        ready()
        if self._by_process(size):
            return self._ask({"memory": size, "write": job.to_json()}, Path(job.target).parent)
        if self._memory.map is None:
            raise CheckpointError("the checkpoint store is closed")
        with memoryview(self._memory.map) as view:
            return write_checkpoint(job, memory_source(view))

    def _by_process(self, size: int) -> bool:
        return self._memory.descriptor is not None and size >= PROCESS_FROM

    def _ask(self, job: dict[str, Any], folder: Path | None = None) -> float:
        """Send a job to the process, started if need be; return the seconds it took. It works in `folder`."""
        process = self._process = self._process or self._start()
        line = json.dumps(job).encode("ascii") + b"\n"
        try:
            if process.stdin is None or process.stdout is None:
                raise BrokenPipeError
            process.stdin.write(line)
            process.stdin.flush()
            answer = json.loads(process.stdout.readline() or "null")
        except (BrokenPipeError, ValueError):
            answer = None
        if answer is None:
            raise self._death(folder)
        if "error" in answer:
            raise _error(answer)
        return float(answer["seconds"])

    def _start(self) -> subprocess.Popen[bytes]:
        descriptor = self._memory.descriptor
        code = _START.format(descriptor, os.getpid())
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code, _ROOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=() if descriptor is None else (descriptor,),
            start_new_session=True,  # Ctrl-C is for the trainer alone
        )

    def _death(self, folder: Path | None) -> CheckpointError:
        """Clear up after the process; return what to say of it."""
        process = self._process
        code = process.wait() if process is not None else 0
        for left in [] if process is None or folder is None else folder.glob(f"*.tmp-{process.pid}"):
            shutil.rmtree(left, ignore_errors=True)
        self._end_process()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return CheckpointError(
            "the process that writes checkpoints died", found=how, fix="the next save starts a new one"
        )

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.stdin is not None and process.stdout is not None:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(b"\n")  # forked workers may hold its input open: it has to be told to end
            process.stdout.close()
            process.wait()


def _error(answer: dict[str, Any]) -> Exception:
    if not answer["storage"]:
        return CheckpointError(answer["error"], found=answer["found"], fix=answer["fix"])
    error = StorageError(answer["error"], found=answer["found"], fix=answer["fix"])
    error.errno = answer["errno"]
    return error
