"""What a measured time depends on: the processor, its cores and memory, and the versions of the runtimes."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from deepseek.hardware import environment, physical_cores

_PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino")
_FLAGS = ("avx", "amx", "sse4", "fma", "f16c", "asimd", "sve", "bf16", "i8mm")


def fingerprint() -> dict[str, Any]:
    """Return the machine in plain values: equal on the same machine with the same runtimes, whatever its load."""
    facts = environment()
    return {
        "cpu": facts["cpu"],
        "system": facts["system"],
        "flags": _cpu_flags() or facts["cpu_features"],
        "physical_cores": physical_cores(),
        "logical_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpu": facts["gpu"],
        "runtimes": _versions(),
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what differs, in words: `physical_cores: 2, now 8`."""
    return [
        f"{key}: {before.get(key)}, now {now.get(key)}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]


def _cpu_flags() -> list[str]:
    """Return the processor's vector instruction sets by the kernel's names; empty where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return sorted({flag for flag in line.partition(":")[2].split() if flag.startswith(_FLAGS)})


def _memory_gib() -> int | None:
    """Return the machine's main memory, rounded: a kernel update moves it by a few MB."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    except (AttributeError, ValueError, OSError):
        return None


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
