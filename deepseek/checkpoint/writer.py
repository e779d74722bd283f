"""The writer process: gets jobs on its standard input, writes from shared memory, answers on its standard output.

Started as a bare Python without torch (about 40 ms), at the lowest priority that matters (nice 10). It ends when its
parent does: a save that is not committed by then is given up, so that a run started anew never meets a second writer.
One line of JSON a job, one an answer. Not here: how a checkpoint is written (`commit.py`), the other end
(`background.py`).
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import sys
import threading
import time
from typing import Any

from deepseek.checkpoint.commit import WriteJob, memory_source, write_checkpoint
from deepseek.checkpoint.shared_memory import populate
from deepseek.errors import StorageError

_NICE = 10
_LOOK_EVERY = 0.1


def main(descriptor: int, parent: int) -> None:
    """Serve jobs until an empty line or the end of the input, from memory `descriptor`, for the process `parent`."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the trainer decides: it saves, waits, and then closes this process
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    memory: mmap.mmap | None = None
    for line in sys.stdin.buffer:
        if not line.strip():
            break
        job = json.loads(line)
        size = int(job["memory"])
        if memory is None or len(memory) < size:
            memory = mmap.mmap(descriptor, size)
        print(json.dumps(_do(job, memory, parent)), flush=True)


def _do(job: dict[str, Any], memory: mmap.mmap, parent: int) -> dict[str, Any]:
    """Return what to answer: the seconds it took, or the error in parts."""
    started = time.monotonic()
    try:
        if "write" not in job:
            populate(memory, job["memory"])
            return {"seconds": time.monotonic() - started}
        write = WriteJob.from_json(job["write"])
        with memoryview(memory) as view:
            return {"seconds": write_checkpoint(write, memory_source(view), lambda: _give_up_without(parent))}
    except Exception as error:
        storage = isinstance(error, StorageError)
        return {
            "error": str(getattr(error, "problem", error)),
            "found": str(error.found) if isinstance(error, StorageError) else type(error).__name__,
            "fix": getattr(error, "fix", None),
            "storage": storage,
            "errno": getattr(error, "errno", None),
        }


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY)
    os._exit(1)


def _give_up_without(parent: int) -> None:
    if os.getppid() != parent:
        os._exit(1)
