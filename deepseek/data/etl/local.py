"""Tasks in processes of this machine, or in this process where one worker is enough.

Workers are spawned, so the program's own script needs its `if __name__ == "__main__":`, as always with processes. A
worker whose program was killed ends by itself. Not here: other machines (`on_ray`).
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess

from deepseek.data.etl.outcome import Result, attempt, opened
from deepseek.data.etl.steps import RowFunction
from deepseek.data.etl.task import Job, Task, do_task
from deepseek.errors import ConfigError, DataError


class _Worker:
    """What a worker process holds."""

    job: Job


def run_local(job: Job, tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """Yield (number of a task, what it did) as they are done. Raises what the first task that fails raises."""
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield task.number, do_task(job, task)
        return
    yield from _in_processes(dumped(job), tasks, min(workers, len(tasks)))


def _in_processes(job: bytes, tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (job,))
    rest = iter(tasks)
    running: set[Future[bytes]] = set()
    try:
        while True:
            while len(running) < 2 * workers and (task := next(rest, None)) is not None:
                running.add(pool.submit(_do, task))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield opened(future.result())
    except BrokenProcessPool:
        raise DataError(
            "a worker died",
            found=f"one of {workers} processes ended without an answer, as when memory runs out or a script has no "
            'if __name__ == "__main__":',
            fix="run again, it goes on where it was; with workers=1 to see the error, or fewer if memory is short",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def dumped(job: Job) -> bytes:
    """Return the job for another process. Raises ConfigError naming a step whose function can't be sent there."""
    if not _needs_values(job):
        try:
            return pickle.dumps(job)
        except (pickle.PicklingError, AttributeError, TypeError):
            pass
    for name in ("cloudpickle", "ray.cloudpickle"):
        try:
            by_value = importlib.import_module(name)
        except ImportError:
            continue
        try:
            return bytes(by_value.dumps(job))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise _unsent(job, error) from None
    raise _unsent(job, None)


def _needs_values(job: Job) -> bool:
    """Return whether a function is of a program that other processes can't import: typed in, or from standard input."""
    main = sys.modules.get("__main__")
    if getattr(main, "__spec__", None) is not None or os.path.exists(getattr(main, "__file__", "") or ""):
        return False
    functions = [step.function for _, step in job.stage.steps if isinstance(step, RowFunction)]
    return any(getattr(function, "__module__", "") == "__main__" for function in functions)


def _unsent(job: Job, error: Exception | None) -> ConfigError:
    found = "a function that can't be pickled" if error is None else str(error)[:200]
    for number, step in job.stage.steps:
        try:
            pickle.dumps(step)
        except Exception as reason:
            return ConfigError(
                f"step {number}, {step.words()}, can't be sent to another process",
                found=str(reason)[:200],
                wanted="a function defined with def at the top of a module",
                fix="move it there, install cloudpickle, or run with workers=1",
            )
    return ConfigError("the plan can't be sent to another process", found=found, fix="run with workers=1")


def _start(job: bytes) -> None:
    """Prepare a worker: interrupts are the parent's business, and without a parent there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    _Worker.job = pickle.loads(job)  # noqa: S301  made by this program's own parent process


def _leave_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _do(task: Task) -> bytes:
    return attempt(_Worker.job, task)
