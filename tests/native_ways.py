"""The ways in which a native kernel's work is done: by the kernel for this processor, by plain C++, by torch."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deepseek.nn import native_build

WAYS = ("kernel", "plain C++", "torch")


def take(way: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have `module`, which has a `library()`, work in one of the ways for this test, and return its name."""
    if way == "kernel" and module.library() is None:
        pytest.skip("no compiler")
    if way == "plain C++":
        monkeypatch.setattr(module, "library", functools.partial(_plain, str(module.__file__)))
    if way == "torch":
        monkeypatch.setattr(module, "library", lambda: None)
    return way


@functools.cache
def _plain(module: str) -> Any:
    source = Path(module).with_suffix(".cpp")
    flags = tuple(flag for flag in native_build._COMMON if not flag.startswith("-march"))
    compiler = native_build.find_compiler()
    if compiler is None:
        pytest.skip("no compiler")
    with tempfile.TemporaryDirectory() as folder:  # a loaded library lives on without its file
        return native_build._built(source, Path(folder) / "plain.so", compiler, flags)
