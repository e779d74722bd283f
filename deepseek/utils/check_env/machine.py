"""The one place where the check touches the machine; tests put another machine in its place.

Every question has an answer on every system: None or an empty value where a machine can't tell.
"""

from __future__ import annotations

import importlib.metadata
import locale
import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

LONGEST_FILE = 4 << 20
"""Bytes read of a file at most; the files of /proc and /sys are far shorter."""


@dataclass(frozen=True)
class Output:
    """What a command that could be started left: its exit code (negative: the signal that ended it) and its text."""

    code: int
    out: str
    err: str = ""


@dataclass(frozen=True)
class Machine:
    """The questions a probe may ask.

    `run(command, seconds)` gives None when the program is not there or takes too long; `read(path)` gives None when
    the file can't be read; `version_of(distribution)` gives None when it is not installed; `free_bytes(folder)` gives
    None when the folder can't be looked at; `port_is_free` looks at 127.0.0.1. `system` and `architecture` are
    spelled as `platform.system()` and `platform.machine()` spell them.
    """

    system: str
    architecture: str
    libc: tuple[str, str]
    python: tuple[int, int, int]
    encodings: Mapping[str, str]
    environ: Mapping[str, str]
    is_root: bool
    logical_cpus: int
    memory: int | None
    open_files: int | None
    folders: Mapping[str, str]
    headers: str
    run: Callable[[Sequence[str], float], Output | None]
    read: Callable[[str], str | None]
    which: Callable[[str], str | None]
    version_of: Callable[[str], str | None]
    free_bytes: Callable[[str], int | None]
    port_is_free: Callable[[int], bool]

    def output(self, *command: str) -> str:
        """Return what a command prints, or nothing where it is absent or fails."""
        result = self.run(command, 20.0)
        return result.out if result is not None and result.code == 0 else ""

    def root_prefix(self) -> str:
        """Return `"sudo "` where a command that changes the system needs it."""
        return "" if self.is_root else "sudo "


def this_machine() -> Machine:
    """Return the machine this process runs on."""
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        libc=platform.libc_ver(),
        python=sys.version_info[:3],
        encodings={
            "file system": sys.getfilesystemencoding(),
            "text files": locale.getpreferredencoding(False),
            "output": getattr(sys.stdout, "encoding", None) or "",
        },
        environ=os.environ,
        is_root=hasattr(os, "geteuid") and os.geteuid() == 0,
        logical_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=_memory(),
        open_files=_open_files(),
        folders={"working folder": _working_folder(), "home": os.path.expanduser("~"), "temporary": _temporary()},
        headers=sysconfig.get_path("include"),
        run=_run,
        read=_read,
        which=shutil.which,
        version_of=_version_of,
        free_bytes=_free_bytes,
        port_is_free=_port_is_free,
    )


def _run(command: Sequence[str], seconds: float) -> Output | None:
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return Output(done.returncode, done.stdout, done.stderr)


def _read(path: str) -> str | None:
    try:
        with open(path, "rb") as handle:
            return handle.read(LONGEST_FILE).decode("utf-8", errors="replace")
    except (OSError, ValueError):
        return None


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _free_bytes(folder: str) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _port_is_free(port: int) -> bool:
    """Return whether nothing listens there; asking by connecting, so that a closing connection does not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _memory() -> int | None:
    if hasattr(os, "sysconf"):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError):
            return None
    return None


def _open_files() -> int | None:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return None
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # removed under our feet
        return "."


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:  # none can be written
        return os.environ.get("TMPDIR", "/tmp")
