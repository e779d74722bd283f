"""Worker processes that make batches ahead, given out in order; one that dies or hangs is noticed and named.

On Linux workers are forked: they share the reader's index, need nothing pickled and start in milliseconds. They compute
in one thread, for the thread pools of a forked process are gone. Elsewhere they are spawned.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import multiprocessing
import pickle
import signal
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal, get_args

from deepseek.data.loaders.fetch import BatchMaker, ErrorPolicy, Made
from deepseek.data.loaders.shared_memory import Inbox
from deepseek.data.loaders.worker import STOP, Failure, Result, Task, run_worker
from deepseek.errors import ConfigError, DataError

StartMethod = Literal["auto", "fork", "spawn", "forkserver"]
_SURE_TO_FIT = 1 << 14  # bytes that a pipe takes although its reader is busy
_TIME_TO_END = 1.0
_LOOK_FOR_CLOSE = 0.2
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PoolSettings:
    """How many workers, how many batches each makes ahead, how many seconds to wait for one, and how to start."""

    num_workers: int
    ahead: int = 2
    timeout: float = 300.0
    start_method: StartMethod = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.num_workers <= 1024 or self.ahead < 1 or not self.timeout > 0:
            raise ConfigError(
                "num_workers, prefetch or timeout is out of range",
                found=f"num_workers={self.num_workers}, prefetch={self.ahead}, timeout={self.timeout}",
                wanted="num_workers 0 to 1024, prefetch at least 1, timeout above 0 seconds",
            )
        if self.start_method not in get_args(StartMethod):
            raise ConfigError(
                "unknown start_method", found=repr(self.start_method), wanted="auto, fork, spawn or forkserver"
            )

    def context(self) -> Any:
        """Return the multiprocessing context."""
        method = self.start_method
        if method == "auto":
            method = "fork" if sys.platform == "linux" else "spawn"
        return multiprocessing.get_context(method)


@dataclass
class _Worker:
    number: int
    process: BaseProcess
    connection: Connection
    inbox: Inbox
    waiting: deque[int] = field(default_factory=deque)
    """Positions it was told to make and has not sent yet, in its order."""


class WorkerPool:
    """Batches `start` to `stop` (without end for None) of `tasks`, each made by the worker with the least to do."""

    def __init__(
        self,
        maker: BatchMaker,
        tasks: Callable[[int], Task],
        settings: PoolSettings,
        policy: ErrorPolicy,
        start: int,
        stop: int | None,
    ) -> None:
        self._maker = maker
        self._tasks = tasks
        self._settings = settings
        self._policy = policy
        self._next, self._ahead, self._stop = start, start, stop
        self._again: list[int] = []  # a heap of positions that a lost worker left
        self._done: dict[int, tuple[int, Made | Failure]] = {}
        self._closing = False
        self._limit = 0.0  # when the next batch is late
        self._losses: Counter[int | None] = Counter()
        self._context = settings.context()
        self._reading = self._context.RawArray("q", [-1] * settings.num_workers)
        self._workers: list[_Worker] = []
        try:
            for number in range(settings.num_workers):
                self._workers.append(self._start(number))
            self._fill()
        except BaseException:
            self.close()
            raise

    def get(self) -> Made:
        """Return the next batch. Raises DataError for what failed in a worker, and for a worker that was lost."""
        self._limit = time.monotonic() + self._settings.timeout
        while self._next not in self._done:
            heard = wait(
                [thing for worker in self._workers for thing in (worker.connection, worker.process.sentinel)],
                min(_LOOK_FOR_CLOSE, max(0.0, self._limit - time.monotonic())),
            )
            if self._closing:
                raise DataError("the loader was closed while it waited for a batch")
            # the next batch is the first that its worker is at, or waits for the first that is done
            head = min(self._workers, key=lambda worker: min(worker.waiting, default=sys.maxsize))
            if not heard and time.monotonic() >= self._limit:
                self._lose(head, f"gave no batch for {self._settings.timeout:g} seconds")
            elif head.connection in heard:
                self._limit = time.monotonic() + self._settings.timeout
            for worker in list(self._workers):
                if worker.connection in heard or worker.process.sentinel in heard:
                    self._collect(worker)
            self._fill()
        number, outcome = self._done.pop(self._next)
        if isinstance(outcome, Failure):
            error = outcome.error()
            error.add_note(f"in worker {number}")
            raise error
        self._next += 1
        self._fill()
        return outcome

    def interrupt(self) -> None:
        """Let a thread that waits in `get` give up."""
        self._closing = True

    def close(self) -> None:
        """End the workers: by themselves if they do so at once, else by force. No process is left."""
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.connection.send_bytes(STOP)
        limit = time.monotonic() + _TIME_TO_END
        for worker in self._workers:
            worker.process.join(max(0.0, limit - time.monotonic()))
        for worker in self._workers:
            self._end(worker)
        self._workers = []
        self._done = {}

    def _start(self, number: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        arguments = (theirs, self._maker, number, self._reading)
        process = self._context.Process(
            target=run_worker, args=arguments, name=f"deepseek-worker-{number}", daemon=True
        )
        try:
            with warnings.catch_warnings():
                # from Python 3.12 on: forking while threads live may copy a lock that is held; see the module's text
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            ours.close()
            raise ConfigError(
                "the data set can't be sent to a worker process",
                found=str(error),
                wanted="a reader and a collate_fn that pickle",
                fix="define them at the top of a module, or pass num_workers=0",
            ) from error
        finally:
            theirs.close()
        return _Worker(number, process, ours, Inbox(ours))

    def _fill(self) -> None:
        """Give out tasks, in order, to workers that have room, as far ahead as is wanted."""
        end = self._next + self._settings.num_workers * self._settings.ahead
        if self._stop is not None:
            end = min(end, self._stop)
        while self._again or self._ahead < end:
            worker = min(self._workers, key=lambda worker: len(worker.waiting))
            if len(worker.waiting) >= self._settings.ahead:
                return
            position = self._again[0] if self._again else self._ahead
            released = tuple(worker.inbox.released)
            message = pickle.dumps(self._tasks(position)._replace(released=released))
            if worker.waiting and len(message) > _SURE_TO_FIT:
                return  # else both sides might wait for the other to read
            try:
                worker.connection.send_bytes(message)
            except OSError:
                self._lose(worker)
                continue
            for _ in released:
                worker.inbox.released.popleft()
            worker.waiting.append(position)
            if self._again:
                heapq.heappop(self._again)
            else:
                self._ahead += 1

    def _collect(self, worker: _Worker) -> None:
        """Take in what a worker has sent, and notice if that was its last."""
        ended = not worker.process.is_alive()  # asked first: what it sent before its end is read below
        try:
            while worker.connection.poll():
                result: Result = worker.inbox.receive()
                worker.waiting.remove(result.position)
                self._done[result.position] = (worker.number, result.outcome)
        except (EOFError, OSError):
            ended = True
        if ended:
            self._lose(worker)

    def _lose(self, worker: _Worker, how: str | None = None) -> None:
        """Start another worker in the place of one that is gone or hangs; raise DataError if policy forbids it."""
        if how is None:
            worker.process.join(_TIME_TO_END)
            how = _how_it_ended(worker.process.exitcode)
        error = self._loss(worker, how)
        self._end(worker)
        place = self._workers.index(worker)
        del self._workers[place]
        first = min(worker.waiting, default=None)
        self._losses[first] += 1
        if self._losses[first] >= self._policy.attempts:
            raise error
        _log.warning("%s; starting another", error.problem)
        time.sleep(self._policy.backoff * 2 ** (self._losses[first] - 1))
        self._reading[worker.number] = -1
        self._workers.insert(place, self._start(worker.number))
        for position in worker.waiting:
            heapq.heappush(self._again, position)
        self._limit = time.monotonic() + self._settings.timeout

    def _loss(self, worker: _Worker, how: str) -> DataError:
        found = "while it waited for work"
        if worker.waiting:
            task = self._tasks(worker.waiting[0])
            indices = task.indices.tolist()
            shown = ", ".join(map(str, indices[:8])) + (f", ... ({len(indices)} in all)" if len(indices) > 8 else "")
            found = f"while making batch {task.batch} of epoch {task.epoch}: samples {shown}"
            at = int(self._reading[worker.number])
            found += f"; it was at sample {at}" if at in indices else ""
        return DataError(
            f"worker {worker.number} (process {worker.process.pid}) {how}",
            found=found,
            fix="look at these samples; if memory ran out, lower num_workers, prefetch or batch_size; a slow disk "
            "needs a longer timeout; on_error='retry' goes on with a new worker",
        )

    def _end(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        worker.process.close()
        worker.connection.close()


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "closed its pipe"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
