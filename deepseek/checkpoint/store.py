"""Checkpoints of a run: saved behind its back, whole or absent on disk, the newest good one found again.

`step_00000100/` holds `state.safetensors` (tensors by path; numbered files where they are large), `state.json` (plain
values) and `manifest.json` (SHA-256 of each, what belongs where). `save` copies the state into memory and returns; a
process writes it. What goes wrong there is raised by the next `check`, `save` or `wait`.
Not here: what a state is made of (`training_state.py`), how it is copied (`snapshot.py`) and written (`commit.py`).
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from deepseek import __version__
from deepseek.checkpoint.background import BackgroundWriter
from deepseek.checkpoint.commit import WriteJob, write_checkpoint
from deepseek.checkpoint.manifest import Manifest, finite_metrics, folder_name, list_folders, step_of
from deepseek.checkpoint.reader import Found, find_newest, read_checkpoint
from deepseek.checkpoint.retention import Mode, Retention, Stored, list_stored, rank
from deepseek.checkpoint.sharded import gathered, is_writer
from deepseek.checkpoint.snapshot import Contents, Plan, Snapshot, plan_for, take_apart, tensor_source
from deepseek.errors import CheckpointError, StorageError
from deepseek.faults import fault_point
from deepseek.files import sweep_temporaries
from deepseek.hardware import memory_available

_SPARE = 256 << 20
"""Bytes of memory that must be left beside a second copy of the state."""
_NOTICEABLE = 0.5
"""Seconds of waiting that are worth a warning."""

logger = logging.getLogger("deepseek.checkpoint")


@dataclass(frozen=True)
class _Pending:
    job: WriteJob
    done: Future[float]


class CheckpointStore:
    """The checkpoints below `folder`, written by this process alone (hold `deepseek.files.folder_lock`).

    Kept are the newest `keep_last`, the `keep_best` many with the least (`mode` "max": greatest) metric `monitor`, and
    for ever every step that `keep_every` divides; an older one goes once a newer one is on disk. With `asynchronous`,
    `save` waits for a copy of the state in memory only; where memory does not hold a second copy it says so once and
    writes straight away. With torch.distributed every rank calls `save`, rank 0 writes; sharded values become whole.

    A save in progress when the process is killed is given up: the last committed checkpoint is what counts. At a normal
    exit it is finished. What killed writers left is removed here. Raises ConfigError for a policy that keeps nothing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int = 2,
        keep_best: int = 0,
        keep_every: int | None = None,
        monitor: str = "val_loss",
        mode: Mode = "min",
        asynchronous: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.retention = Retention(keep_last, keep_best, keep_every, monitor, mode)
        self.asynchronous = asynchronous
        if is_writer():
            sweep_temporaries(self.folder)
        committed = list_folders(self.folder)
        self.latest_committed: int | None = step_of(committed[0]) if committed else None
        """The newest step that is on disk for sure."""
        self._snapshot = Snapshot()
        self._writer = BackgroundWriter(self._snapshot.memory)
        self._plan: Plan | None = None
        self._pending: _Pending | None = None
        self._said: set[str] = set()
        self._finalizer = weakref.finalize(self, _release, self._writer, self._snapshot, os.getpid())

    def prepare(self, state: dict[str, Any]) -> None:
        """Get memory for states like this one ready in the background, so that the first save costs what others do.

        Call it after the first step, when the optimizer has its state. Nothing is copied.
        """
        plan = self._plan = plan_for(take_apart(state).tensors, self._plan)
        if self._pending is None and is_writer() and self._make_room(plan):
            self._writer.prepare(plan.size)

    def save(
        self, step: int, state: dict[str, Any], metrics: dict[str, float] | None = None, *, path: Path | None = None
    ) -> None:
        """Save `state` (a tree of tensors and plain values) as the checkpoint of `step`; return once it is copied.

        With `path` it becomes that folder instead of one of the store's, and stays until someone removes it. Waits for
        the write before it if that is not done. Raises CheckpointError for a state that can't be saved. The error of
        the write before it (StorageError with `errno`, CheckpointError) is raised after this save is under way; older
        checkpoints are untouched by either.
        """
        contents = take_apart(state)
        plan = self._plan = plan_for(contents.tensors, self._plan)
        failed = self._finish()
        fault_point("checkpoint.copy")
        if not is_writer():
            self._snapshot.copy(plan, contents.tensors, keep=False)
        elif self._make_room(plan):
            arrived = self._snapshot.copy(plan, contents.tensors, keep=True)
            job = self._job(step, plan, contents, metrics, path)
            self._pending = _Pending(job, self._writer.write(job, plan.size, arrived))
        else:
            self._write_now(self._job(step, plan, contents, metrics, path), plan, gathered(contents.tensors))
        if failed is not None:
            raise failed

    def check(self) -> None:
        """Raise what went wrong with the write in the background, if that is known by now; costs nothing."""
        if self._pending is not None and self._pending.done.done():
            self.wait()

    def wait(self) -> None:
        """Wait until all is on disk. Raises StorageError with `errno`, or CheckpointError, if it is not."""
        failed = self._settle()
        if failed is not None:
            raise failed

    def close(self) -> None:
        """Wait for the write in progress, end the writer, free the memory. Raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._finalizer()

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def newest_good(self) -> Found | None:
        """Return the newest checkpoint that is sound, None where there is none; logs each one it skips and why."""
        failed = self._settle()
        if failed is not None:
            logger.warning("%s", failed)
        return find_newest(self.folder)

    def list(self) -> Sequence[Stored]:
        """Return the committed checkpoints with their metrics, newest first."""
        return list_stored(self.folder)

    def best(self) -> Stored | None:
        """Return the committed checkpoint with the best `monitor`, None where none has that metric."""
        return next(iter(rank(list_stored(self.folder), self.retention.monitor, self.retention.mode)), None)

    def _make_room(self, plan: Plan) -> bool:
        """Have memory for a copy; return False, and say once why, where there is none."""
        if not self.asynchronous:
            return False
        more = plan.size - self._snapshot.memory.size
        available = memory_available() if more > 0 else None
        if available is None or available >= more + _SPARE:
            try:
                self._snapshot.make_room(plan)
                return True
            except OSError as error:  # such as a limit on the size of files, which counts for shared memory too
                why: object = error.strerror
        else:
            why = f"{available / 1e9:.1f} GB are free"
        self._say_once(
            "memory",
            "no memory for a copy of the state (%.1f GB): %s; training waits while checkpoints are written",
            *(plan.size / 1e9, why),
        )
        return False

    def _finish(self) -> StorageError | CheckpointError | None:
        """Wait for the write before the next one; says once if training waits for long."""
        pending, started = self._pending, time.monotonic()
        failed = self._settle()
        waited = time.monotonic() - started
        if pending is not None and waited >= _NOTICEABLE:
            self._say_once(
                "slow",
                "training waited %.1f s, as the checkpoint of step %d was still being written: save less often",
                *(waited, pending.job.manifest.step),
            )
        return failed

    def _settle(self) -> StorageError | CheckpointError | None:
        """Wait for the write in progress and return what went wrong, once."""
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        try:
            seconds = pending.done.result()
        except Exception as error:
            return _named(error, pending.job.manifest.step)
        except BaseException:
            self._pending = pending  # Ctrl-C while waiting: the write goes on
            raise
        self._committed(pending.job)
        logger.debug("%s written in %.2f s", pending.job.target, seconds)
        return None

    def _committed(self, job: WriteJob) -> None:
        if job.retention is not None:
            self.latest_committed = job.manifest.step

    def _job(
        self, step: int, plan: Plan, contents: Contents, metrics: dict[str, float] | None, path: Path | None
    ) -> WriteJob:
        manifest = Manifest(step, plan.records(), contents.aliases, finite_metrics(metrics), _versions())
        target = str(self.folder / folder_name(step) if path is None else path)
        retention = self.retention if path is None else None
        return WriteJob(target, plan.jobs(), json.dumps(contents.plain), manifest, retention)

    def _write_now(self, job: WriteJob, plan: Plan, tensors: dict[str, Tensor]) -> None:
        try:
            write_checkpoint(job, tensor_source(plan, tensors))
        except Exception as error:
            raise _named(error, job.manifest.step) from error
        self._committed(job)

    def _say_once(self, what: str, message: str, *values: object) -> None:
        if what not in self._said:
            self._said.add(what)
            logger.warning(message, *values)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 3) -> Path:
    """Write `state` as the checkpoint of `step` below `folder`, then remove all but the `keep` newest.

    Returns when it is on disk. Raises StorageError when the disk refuses; older checkpoints stay.
    """
    with CheckpointStore(folder, keep_last=keep, asynchronous=False) as store:
        store.save(step, state)
    return folder / folder_name(step)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the committed checkpoints below `folder`, newest first."""
    return list_folders(folder)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint, checksums compared. Raises CheckpointError naming the damaged file."""
    return read_checkpoint(path)


def load_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest good checkpoint and its state, or None where there is none; says which it skipped and why."""
    found = find_newest(folder)
    return None if found is None else (found.path, found.state)


def _named(error: Exception, step: int) -> StorageError | CheckpointError:
    """Return the error of a write with the step it was for."""
    problem = f"the checkpoint of step {step} was not written: {getattr(error, 'problem', error)}"
    if isinstance(error, StorageError):
        storage = StorageError(problem, found=error.found, wanted=error.wanted, fix=error.fix)
        storage.errno = error.errno
        return storage
    if isinstance(error, CheckpointError):
        return CheckpointError(problem, found=error.found, wanted=error.wanted, fix=error.fix)
    return CheckpointError(
        problem, found=type(error).__name__, fix="older checkpoints are good; the next save tries again"
    )


def _versions() -> dict[str, str]:
    return {
        "deepseek": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
    }


def _release(writer: BackgroundWriter, snapshot: Snapshot, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked worker
        writer.close()
        snapshot.close()
