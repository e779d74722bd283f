"""Writes a checkpoint from memory to disk: hashed while written, synced, renamed into place, older ones let go.

Order: each file is written and synced, then the manifest, then the folder, then it gets its name, then the folder above
is synced; a power cut leaves the whole checkpoint or none. Large files go past the system's cache where the disk
allows (O_DIRECT, open(2)): that costs a third of the processor time, and the cache stays with the training data.
Free of torch: the writer process (`writer.py`) imports it; the same code runs in a thread for small states.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deepseek.checkpoint.layout import PAGE, round_up
from deepseek.checkpoint.manifest import (
    CHECK_DIGITS,
    NAME,
    PLAIN,
    FileRecord,
    Manifest,
    TensorRecord,
)
from deepseek.checkpoint.retention import Retention, remove_superseded
from deepseek.errors import StorageError
from deepseek.faults import fault_point
from deepseek.files import atomic_folder, storage_errors

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_CHUNK = 8 << 20
_THREADS = 3
_DIRECT_FROM = 1 << 20
_DIRECT: int = getattr(os, "O_DIRECT", 0)

Mark = tuple[int, str]
"""Where a tensor ends in its file, and its name."""


@dataclass(frozen=True)
class FileJob:
    """A file to write: `size` bytes that begin at `start` of the shared memory."""

    name: str
    start: int
    size: int
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class WriteJob:
    """A checkpoint to write; its manifest still lacks the checksums."""

    target: str
    """The folder to write."""
    files: tuple[FileJob, ...]
    plain: str
    manifest: Manifest
    retention: Retention | None = None
    """What to let go beside the target, once it is on disk."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> WriteJob:
        """Undo `to_json`."""
        files = tuple(
            FileJob(**{**one, "marks": tuple((end, name) for end, name in one["marks"])}) for one in values["files"]
        )
        tensors = {name: TensorRecord(**record) for name, record in values["manifest"]["tensors"].items()}
        manifest = Manifest(**{**values["manifest"], "tensors": tensors, "files": {}})
        retention = Retention(**values["retention"]) if values["retention"] is not None else None
        return cls(values["target"], files, values["plain"], manifest, retention)


@dataclass(frozen=True)
class Source:
    """Where the bytes of a file come from. `paged`: whole pages of memory at page addresses, zeros behind the end."""

    pieces: Callable[[FileJob], Iterable[memoryview]]
    paged: bool = False


def memory_source(memory: memoryview) -> Source:
    """Return the source that reads each file from its place in `memory`."""

    def pieces(file: FileJob) -> Iterator[memoryview]:
        yield memory[file.start : file.start + round_up(file.size, PAGE)]

    return Source(pieces, paged=True)


def write_checkpoint(job: WriteJob, source: Source, before_rename: Callable[[], None] | None = None) -> float:
    """Write one checkpoint and let older ones go; return the seconds it took. One that is there is replaced.

    `before_rename` may raise to give up. Raises StorageError when the disk refuses; all others are as they were.
    """
    started = time.monotonic()
    target = Path(job.target)
    with _every_storage_error(target), atomic_folder(target, replace=True) as temporary:
        _fill(temporary, job, source)
        fault_point("checkpoint.rename")
        if before_rename is not None:
            before_rename()
    if job.retention is not None:
        remove_superseded(target.parent, job.retention)
    return time.monotonic() - started


def _fill(folder: Path, job: WriteJob, source: Source) -> None:
    """Write and sync all files, several at a time, then the manifest with their checksums."""
    checks: dict[str, str] = {}
    with ThreadPoolExecutor(min(_THREADS, len(job.files))) as pool:
        running = [pool.submit(write_file, folder, file, source, checks) for file in job.files]
        try:
            files = {file.name: done.result() for file, done in zip(job.files, running, strict=True)}
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    files[PLAIN] = _write_text(folder, PLAIN, job.plain)
    tensors = {name: replace(record, check=checks[name]) for name, record in job.manifest.tensors.items()}
    manifest = replace(
        job.manifest, tensors=tensors, files=files, created=datetime.now(UTC).isoformat(timespec="seconds")
    )
    _write_text(folder, NAME, manifest.text())


def _write_text(folder: Path, name: str, text: str) -> FileRecord:
    data = text.encode("utf-8")
    file = FileJob(name, 0, len(data), ())
    return write_file(folder, file, Source(lambda _: [memoryview(data)]), {})


def write_file(folder: Path, file: FileJob, source: Source, checks: dict[str, str]) -> FileRecord:
    """Write and sync one file, hashed on the way; the checks of its tensors are added to `checks`."""
    fault_point("checkpoint.write")
    digest = MarkedDigest(file.marks)
    handle = os.open(folder / file.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        if source.paged and file.size >= _DIRECT_FROM:
            _go_direct(handle, file.size)
        for piece in source.pieces(file):
            for begin in range(0, len(piece), _CHUNK):
                chunk = piece[begin : begin + _CHUNK]
                digest.update(chunk[: file.size - digest.position])
                _write_all(handle, chunk)
        if source.paged:
            os.ftruncate(handle, file.size)
        fault_point("checkpoint.fsync")
        os.fsync(handle)
    finally:
        os.close(handle)
    checks.update(digest.checks)
    return FileRecord(file.size, digest.hexdigest())


class MarkedDigest:
    """SHA-256 of a file that also notes its value at each mark: the first mark that differs is where damage begins."""

    def __init__(self, marks: Iterable[Mark]) -> None:
        self.position = 0
        self.checks: dict[str, str] = {}
        self._digest = hashlib.sha256()
        self._marks = iter(marks)
        self._next: Mark | None = next(self._marks, None)

    def update(self, data: memoryview) -> None:
        """Take the next bytes."""
        at = 0
        while self._next is not None and self._next[0] <= self.position + len(data):
            end, name = self._next
            self._digest.update(data[at : end - self.position])
            at = end - self.position
            self.checks[name] = self._digest.hexdigest()[:CHECK_DIGITS]
            self._next = next(self._marks, None)
        self._digest.update(data[at:])
        self.position += len(data)

    def hexdigest(self) -> str:
        """Return the SHA-256 of all bytes so far."""
        return self._digest.hexdigest()


def _go_direct(handle: int, size: int) -> None:
    """Write past the cache if the disk can, and reserve the space: a full disk is found before anything is written."""
    reserve = getattr(os, "posix_fallocate", None)
    if fcntl is None or not _DIRECT or reserve is None:
        return
    try:
        fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) | _DIRECT)
        reserve(handle, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # such as tmpfs of older kernels: the cache is used
            raise


def _write_all(handle: int, data: memoryview) -> None:
    while data:
        try:
            data = data[os.write(handle, data) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not _leave_direct(handle):
                raise


def _leave_direct(handle: int) -> bool:
    """Go back to the system's cache; return False where the file used it already."""
    flags = fcntl.fcntl(handle, fcntl.F_GETFL) if fcntl is not None else 0
    if not flags & _DIRECT:
        return False
    fcntl.fcntl(handle, fcntl.F_SETFL, flags & ~_DIRECT)
    return True


@contextlib.contextmanager
def _every_storage_error(target: Path) -> Iterator[None]:
    """Turn any error of the system into StorageError, also those that `storage_errors` has no advice for."""
    try:
        with storage_errors(target):
            yield
    except StorageError:
        raise
    except OSError as error:
        storage = StorageError(f"can't write {target}", found=error.strerror or error, fix="choose another disk")
        storage.errno = error.errno
        raise storage from error
