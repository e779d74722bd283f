"""Files that are either whole or absent: atomic writes, atomic folders, run locks.

A file is written under a temporary name beside its target, synced, and renamed; a folder likewise. After a kill
or a full disk the target is what it was before. Leftovers carry the suffix `.tmp-PID` and are removed by
`sweep_temporaries`. Not here: what the files mean (bundle, checkpoint, cache).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from deepseek.errors import DeepSeekError, RunLockedError, StorageError

_TEMPORARY = ".tmp-"
_LEFTOVER = re.compile(r"(.+)\.tmp-(old-)?([0-9]{1,18})")


def fsync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk, where the platform can (not on Windows)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(path: Path) -> None:
    """Sync a file's bytes to disk."""
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what a disk says (full, read-only, no permission) into StorageError with the next step."""
    fixes = {
        errno.ENOSPC: "free some space or choose another folder",
        errno.EDQUOT: "free some of your quota or choose another folder",
        errno.EROFS: "choose a folder on a disk that can be written",
        errno.EACCES: "choose a folder you may write to",
        errno.EPERM: "choose a folder you may write to",
        errno.EFBIG: "raise the file size limit (ulimit -f) or choose another disk",
        errno.EIO: "check the disk; its hardware reports an error",
        errno.ENOTDIR: "choose a path whose parent is a folder",
        errno.EISDIR: "choose another path; a folder of that name is in the way",
        errno.EEXIST: "choose another path; a file of that name is in the way",
        errno.ENAMETOOLONG: "choose a shorter name",
    }
    try:
        yield
    except DeepSeekError:
        raise
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else _code_in_text(error)
        if code not in fixes:
            raise
        storage = StorageError(f"can't write {path}", found=os.strerror(code), fix=fixes[code])
        storage.errno = code
        raise storage from error


def _code_in_text(error: Exception) -> int | None:
    """Return the system's error number that a library written in Rust (safetensors) puts into its message."""
    match = re.search(r"\(os error ([0-9]{1,4})\)", str(error))
    return int(match[1]) if match else None


@contextlib.contextmanager
def atomic_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `target` when the block ends without an error.

    With `replace`, an existing target changes places with the new one in one move (on Linux; elsewhere in two, between
    which a kill leaves it aside until `sweep_temporaries`), and is removed then.
    Raises StorageError when the disk refuses; then the target is as it was.
    """
    temporary = target.with_name(f"{target.name}{_TEMPORARY}{os.getpid()}")
    try:
        with storage_errors(target):
            if target.exists() and not replace:
                raise StorageError(f"{target} exists already", fix="choose another path or remove it first")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            yield temporary
            for path in sorted(temporary.rglob("*")):
                fsync_folder(path) if path.is_dir() else fsync_file(path)
            fsync_folder(temporary)
            if not target.exists():
                os.rename(temporary, target)
            elif not _exchange(temporary, target):
                _replace_by_two_renames(temporary, target)
            fsync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Let two paths change places in one move (Linux renameat2); return False where the system has no such call."""
    if sys.platform != "linux":
        return False
    import ctypes  # 5 ms that only a replaced folder costs

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of the kernel's headers
    return bool(rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0)


def _replace_by_two_renames(temporary: Path, target: Path) -> None:
    aside = target.with_name(f"{target.name}{_TEMPORARY}old-{os.getpid()}")
    os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except BaseException:
        os.rename(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path; the file written there replaces `target` when the block ends without an error."""
    temporary = target.with_name(f"{target.name}{_TEMPORARY}{os.getpid()}")
    try:
        with storage_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            fsync_file(temporary)
            os.replace(temporary, target)
            fsync_folder(target.parent)
    finally:
        with contextlib.suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(target: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically. NaN is refused (it is not JSON)."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sweep_temporaries(folder: Path) -> list[Path]:
    """Remove what killed writers left in `folder`; return what was removed. Call with the folder's lock held.

    What a living process of this host is writing stays. A folder set aside by a writer that was killed before its new
    one stood in its place goes back there.
    """
    removed = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = _LEFTOVER.fullmatch(path.name)
        if match is None:
            continue
        name, old, pid = match.groups()
        if int(pid) != os.getpid() and _alive(int(pid)):
            continue
        if old and not path.with_name(name).exists():
            os.rename(path, path.with_name(name))
            continue
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        removed.append(path)
    return removed


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone; the lock file names pid and host.

    A lock whose process is gone on this host is taken over. Raises RunLockedError while another process lives
    (or runs on another host, where it can't be checked).
    """
    lock = folder / ".lock"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _only_one(lock) as handle:
            _refuse_if_held(lock, handle.read())
            handle.seek(0)
            handle.truncate()
            handle.write(_own_name())
    try:
        yield
    finally:
        with contextlib.suppress(OSError), _only_one(lock) as handle:
            free = handle.read() in {"", _own_name()}
            if fcntl is None:
                handle.close()  # Windows removes no open file
            if free:
                lock.unlink(missing_ok=True)


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[IO[str]]:
    """Open the lock file for reading and writing; while it is open no other process of this host has it so."""
    while True:
        with open(lock, "a+", encoding="utf-8", errors="replace") as handle:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)
                if not _is_at(handle, lock):
                    continue  # its holder removed it in this moment
            handle.seek(0)
            yield handle
            return


def _is_at(handle: IO[str], path: Path) -> bool:
    """Return whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _own_name() -> str:
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "start": _process_start(os.getpid())})


def _refuse_if_held(lock: Path, text: str) -> None:
    try:
        holder = json.loads(text)
        pid, host, start = int(holder["pid"]), str(holder["host"]), holder.get("start")
    except (ValueError, KeyError, TypeError, AttributeError):
        return  # empty, or cut short by a kill: it names nobody
    if host == socket.gethostname() and (not _alive(pid) or _process_start(pid) != start):
        return
    raise RunLockedError(
        f"{lock.parent} is in use by another run",
        found=f"process {pid} on host {host}",
        fix=f"wait for it, choose another output folder, or, if it is gone for sure, remove {lock}",
    )


def _alive(pid: int) -> bool:
    if not 0 < pid < 1 << 31:
        return False
    if os.name == "nt":
        return True  # signal 0 would stop the process there; the message tells how to remove the lock by hand
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    fields = _process_fields(pid)
    return fields is None or fields[0] != "Z"  # it ended, though nobody has asked how: it writes no more


def _process_start(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot (Linux); a pid used again differs here."""
    fields = _process_fields(pid)
    return None if fields is None else fields[19]


def _process_fields(pid: int) -> list[str] | None:
    """Return what Linux says of a process after its name, state first (proc_pid_stat(5)); None elsewhere."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return stat.rpartition(")")[2].split()
