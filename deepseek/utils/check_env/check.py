"""Runs every probe, each on its own: one that fails becomes a finding, and the others go on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

from deepseek.utils.check_env import amd, cpu, memory, nvidia, other_gpus, show, surroundings, tools, versions
from deepseek.utils.check_env.finding import Finding, warning
from deepseek.utils.check_env.machine import Machine, this_machine
from deepseek.utils.check_env.torch_facts import TorchFacts, ask_torch

_Fact = TypeVar("_Fact")


def run_check(json: bool = False) -> int:
    """Check this machine, print what was found, and return the exit code: 1 if there is a problem, else 0."""
    findings = collect(this_machine())
    show.show(findings, sys.stdout, json=json)
    return exit_code(findings)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 1 if there is a problem, else 0; warnings don't count."""
    return int(any(finding.status == "problem" for finding in findings))


def collect(machine: Machine) -> list[Finding]:
    """Return every finding about `machine`. Never raises: a probe that fails is a finding itself."""
    facts = _fact(lambda: ask_torch(machine), TorchFacts(error="it gives no answer that can be read"))
    processor = _fact(lambda: cpu.read_cpu(machine), cpu.Cpu(machine.architecture, frozenset(), None))
    probes: dict[str, Callable[[], Iterable[Finding]]] = {
        "Python": lambda: versions.python(machine),
        "torch": lambda: versions.torch(facts),
        "core packages": lambda: versions.core(machine),
        "text encoding": lambda: versions.text_encoding(machine),
        "NVIDIA": lambda: nvidia.nvidia(machine, facts),
        "AMD": lambda: amd.amd(machine, facts),
        "GPU": lambda: other_gpus.other_gpus(machine, facts),
        "processor": lambda: cpu.features(machine, processor),
        "threads": lambda: cpu.threads(machine, processor, facts),
        "memory": lambda: memory.memory(machine),
        "shared memory": lambda: memory.shared_memory(machine),
        "huge pages": lambda: memory.huge_pages(machine),
        "allocator": lambda: memory.allocator(machine),
        "disks": lambda: surroundings.disks(machine),
        "ports": lambda: surroundings.ports(machine),
        "place": lambda: surroundings.place(machine),
        "open files": lambda: surroundings.open_files(machine),
        "C++ compiler": lambda: tools.cpp_compiler(machine),
        "C compiler": lambda: tools.c_compiler(machine),
        "Python headers": lambda: tools.python_headers(machine),
        "optional packages": lambda: tools.extras(machine),
    }
    return [finding for name, probe in probes.items() for finding in _guarded(name, probe)]


def _guarded(name: str, probe: Callable[[], Iterable[Finding]]) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(probe())
    except Exception as error:  # whatever an odd machine makes a probe raise
        found.append(
            warning(
                "check",
                name,
                f"could not be checked: {type(error).__name__}: {error}"[:200],
                why="this machine answers in a way the check does not know",
                fix="report it with the output of: deepseek check-env --json",
            )
        )
    return found


def _fact(ask: Callable[[], _Fact], otherwise: _Fact) -> _Fact:
    try:
        return ask()
    except Exception:  # a guess that fits no machine: the probes that build on it then say what they miss
        return otherwise
