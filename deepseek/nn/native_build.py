"""Compiles a C++ file of this package at first use, with the machine's own compiler, and keeps the result.

The library lies in the user's cache under a name made of the source, the compiler and the processor, so that a shared
home folder or a new release never meets the wrong one. It is written whole or not at all; two processes that build at
once write the same. Where anything is missing (compiler, writable folder, OpenMP) the answer is None and the reason.
Not here: what is compiled (`binary_kernel`).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import NamedTuple

from deepseek.errors import StorageError
from deepseek.files import atomic_path

SWITCH = "DEEPSEEK_NATIVE"
"""Set to 0 in the environment, nothing is compiled or loaded."""

_COMMON = ("-O3", "-march=native", "-ffp-contract=off", "-std=c++17", "-fPIC")
_OPENMP = ((*_COMMON, "-fopenmp"), _COMMON)  # the second where the compiler has no OpenMP
_SECONDS = 120
_one_at_a_time = threading.Lock()  # the temporary file's name is this process's


class Library(NamedTuple):
    """A loaded library, or None and why there is none."""

    handle: ctypes.CDLL | None
    reason: str


def load_library(source: Path) -> Library:
    """Return the library of a C++ file, compiled now if it is not in the cache yet."""
    with _one_at_a_time:
        return _load(source)


def _load(source: Path) -> Library:
    if os.environ.get(SWITCH) == "0":
        return Library(None, f"{SWITCH}=0 is set")
    compiler = find_compiler()
    if compiler is None:
        return Library(None, "no C++ compiler (looked for $CXX, c++, g++, clang++)")
    try:
        text = _text(source)
        version = _run([compiler, "--version"])
    except (OSError, subprocess.SubprocessError) as error:
        return Library(None, f"{compiler} or {source.name} can't be used: {error}")
    reasons = []
    for flags in _OPENMP:
        key = hashlib.sha256(b"\0".join([text, version, _processor(), " ".join(flags).encode()])).hexdigest()[:24]
        try:
            return Library(_built(source, cache_folder() / f"{source.stem}-{key}.so", compiler, flags), "")
        except (OSError, StorageError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", b"") or b""
            reasons.append((said.decode(errors="replace").strip() or str(error)).splitlines()[0])
    return Library(None, f"{compiler}: {reasons[-1]}")


def find_compiler() -> str | None:
    """Return the path of a C++ compiler with GCC's options: `$CXX`, else the first of c++, g++, clang++."""
    if platform.system() == "Windows":
        return None
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


def _text(source: Path) -> bytes:
    """Return a file and what it includes of its own folder, which it does at lines' beginnings."""
    text = source.read_bytes()
    included = re.findall(rb'^#include "([^"]+)"', text, re.MULTILINE)
    return b"".join([text, *(_text(source.with_name(name.decode())) for name in included)])


def cache_folder() -> Path:
    """Return where compiled libraries are kept: `$XDG_CACHE_HOME` or `~/.cache`, then `deepseek/native`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepseek" / "native"


def _built(source: Path, target: Path, compiler: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    if not target.is_file():
        with atomic_path(target) as temporary:
            compiled = temporary.with_name(f"{temporary.name}.o")
            try:
                _run([compiler, *flags, "-c", str(source), "-o", str(compiled)])
                # linked without OpenMP: its calls go to the one that torch has loaded, so there is one set of threads
                _run([compiler, "-shared", str(compiled), "-o", str(temporary)])
            finally:
                compiled.unlink(missing_ok=True)
    return ctypes.CDLL(str(target))


def _run(command: list[str]) -> bytes:
    return subprocess.run(command, capture_output=True, timeout=_SECONDS, check=True).stdout  # noqa: S603


def _processor() -> bytes:
    """Return what tells this processor's instructions from another's."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor().encode()
    told = {line for line in lines if line.split("\t")[0].split(":")[0].strip() in {"model name", "flags", "Features"}}
    return "\n".join(sorted(told)).encode()
