"""A worker process: it makes the batches it is told to, one after another, until it is told to end.

It computes in one thread, ends by itself when its parent is gone, and leaves Ctrl-C to the parent. Not here: which
worker makes what (`worker_pool`).
"""

from __future__ import annotations

import os
import pickle
import random
import signal
import traceback
from collections.abc import MutableSequence
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from deepseek.data.loaders.fetch import BatchMaker, Made, explained
from deepseek.data.loaders.shared_memory import Outbox
from deepseek.errors import DataError
from deepseek.hardware import keep_freed_memory

STOP = b""
_LOOK_FOR_PARENT = 1.0


class Task(NamedTuple):
    """A batch to make, the `batch`th of an epoch. `released` are segments of shared memory that are free again."""

    position: int
    epoch: int
    batch: int
    indices: NDArray[np.int64]
    seed: int
    released: tuple[int, ...] = ()


class Failure(NamedTuple):
    """An error in a worker: what it says, and the traceback over there."""

    problem: str
    found: str | None
    wanted: str | None
    fix: str | None
    trace: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Return what is known of `error`, as text: the error itself may hold what can't be sent."""
        own = error if isinstance(error, DataError) else explained(error, "the batch can't be put together")
        found, wanted = (None if part is None else str(part) for part in (own.found, own.wanted))
        return cls(own.problem, found, wanted, own.fix, "".join(traceback.format_exception(error)))

    def error(self) -> DataError:
        """Return the error to raise in the parent."""
        error = DataError(self.problem, found=self.found, wanted=self.wanted, fix=self.fix)
        error.add_note("the traceback in the worker:\n" + self.trace.rstrip())
        return error


class Result(NamedTuple):
    """What became of a task."""

    position: int
    outcome: Made | Failure


def run_worker(connection: Connection, maker: BatchMaker, worker: int, reading: MutableSequence[int]) -> None:
    """Work until STOP comes or the parent is gone. `reading[worker]` tells the sample it is at, for the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    keep_freed_memory()
    parent = os.getppid()
    outbox = Outbox(connection)

    def progress(index: int) -> None:
        reading[worker] = index

    while True:
        while not connection.poll(_LOOK_FOR_PARENT):
            if os.getppid() != parent:
                return
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            return
        if message == STOP:
            return
        task: Task = pickle.loads(message)
        outbox.release(task.released)
        _seed_all(task)
        try:
            outcome: Made | Failure = maker.make(task.epoch, task.indices.tolist(), progress)
        except Exception as error:
            outcome = Failure.of(error)
        try:
            outbox.send(Result(task.position, outcome))
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:  # what collate_fn returned can't be pickled
            outbox.send(Result(task.position, Failure.of(error)))
        del outcome


def _seed_all(task: Task) -> None:
    """Give the global random numbers, which forked workers would share, a start that depends on the batch alone."""
    words = np.random.SeedSequence([task.seed, task.position]).generate_state(2)
    torch.manual_seed(int(words[0]))
    random.seed(int(words[1]))
    np.random.seed(int(words[1]))
