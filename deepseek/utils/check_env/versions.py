"""Python and torch: present, new enough, importable."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from deepseek.utils.check_env.finding import Finding, numbers, ok, problem, warning
from deepseek.utils.check_env.machine import Machine
from deepseek.utils.check_env.torch_facts import TorchFacts

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 10)

CORE = ("numpy", "safetensors", "pydantic", "PyYAML", "tokenizers", "typer", "rich", "Jinja2")
"""Distributions that everything needs, beside torch."""


def python(machine: Machine) -> Iterator[Finding]:
    """Python's version and word size."""
    found = ".".join(str(part) for part in machine.python)
    wanted = ".".join(str(part) for part in OLDEST_PYTHON)
    if machine.python[:2] < OLDEST_PYTHON:
        yield problem(
            "versions",
            "Python",
            found,
            why=f"the framework needs Python {wanted} or newer",
            fix=f"install Python {wanted}, then: python{wanted} -m venv .venv",
        )
    elif sys.maxsize < 2**32:
        yield problem(
            "versions",
            "Python",
            f"{found}, 32 bit",
            why="torch has no 32-bit build",
            fix="install the 64-bit Python of the same version",
        )
    else:
        yield ok("versions", "Python", found)


def torch(facts: TorchFacts) -> Iterator[Finding]:
    """Whether torch is there, can be imported and is new enough."""
    wanted = ".".join(str(part) for part in OLDEST_TORCH)
    install = f"pip install 'torch>={wanted}'"
    if not facts.installed:
        yield problem(
            "versions", "torch", "not installed", why="torch is the engine; nothing runs without it", fix=install
        )
    elif facts.error is not None:
        yield problem(
            "versions",
            "torch",
            f"can't be imported: {facts.error}",
            why="torch is the engine; nothing runs without it",
            fix=f"pip install --force-reinstall --no-cache-dir 'torch>={wanted}'",
        )
    elif numbers(facts.version)[:2] < OLDEST_TORCH:
        yield problem(
            "versions",
            "torch",
            facts.version,
            why=f"before {wanted}, loading a checkpoint could run code that somebody hid in it",
            fix=f"pip install --upgrade 'torch>={wanted}'",
        )
    else:
        yield ok("versions", "torch", f"{facts.version} ({_build(facts)})")


def core(machine: Machine) -> Iterator[Finding]:
    """The other packages that everything needs."""
    versions = {name: machine.version_of(name) for name in CORE}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        yield problem(
            "versions",
            "core packages",
            f"not installed: {', '.join(missing)}",
            why="every command needs them",
            fix=f"pip install {' '.join(missing)}",
        )
    else:
        yield ok("versions", "core packages", ", ".join(f"{name} {version}" for name, version in versions.items()))


def text_encoding(machine: Machine) -> Iterator[Finding]:
    """Whether text files, file names and output are UTF-8."""
    other = {
        name: value
        for name, value in machine.encodings.items()
        if value and value.lower().replace("-", "").replace("_", "") not in ("utf8", "utf8sig", "cp65001")
    }
    if other:
        yield warning(
            "versions",
            "text encoding",
            ", ".join(f"{name}: {value}" for name, value in other.items()),
            why="Chinese text and symbols in file names or output come out wrong or raise errors",
            fix="setx PYTHONUTF8 1" if machine.system == "Windows" else "export LANG=C.UTF-8 PYTHONUTF8=1",
        )
    else:
        yield ok("versions", "text encoding", "UTF-8")


def _build(facts: TorchFacts) -> str:
    if facts.cuda:
        return f"built for CUDA {facts.cuda}"
    if facts.hip:
        return f"built for ROCm {facts.hip}"
    return "Apple GPU" if facts.mps else "CPU build"
