"""Which device, how many cores, which number format is fast here: facts about the machine, asked of torch.

Not here: advice to the user (`deepseek.utils.check_env`).
"""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepseek.errors import ConfigError, did_you_mean

_FREED = 30 << 20  # just below the largest size (32 MiB) at which glibc still learns


def keep_freed_memory() -> None:
    """Have glibc keep blocks of up to 30 MiB that are freed, instead of giving them back and asking anew each time.

    It learns this from the first large block that is freed (mallopt(3), M_MMAP_THRESHOLD); the pages are not touched.
    Without it each image of a few MB in float32 costs fresh pages, and work on it up to three times the time. Elsewhere
    than on glibc nothing changes.
    """
    np.empty(_FREED, dtype=np.uint8)


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device meant: `"auto"` picks CUDA (or ROCm's build of it), then Apple's MPS, then the CPU.

    Raises ConfigError for an unknown name or a device this machine lacks.
    """
    if isinstance(device, torch.device):
        return device
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ConfigError(
            "unknown device", found=repr(device), fix=did_you_mean(device, ("auto", "cpu", "cuda", "cuda:0", "mps"))
        ) from None
    missing = (found.type == "cuda" and not torch.cuda.is_available()) or (
        found.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing or (found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(
            f"this machine has no device '{device}'", wanted="auto or cpu", fix="run `deepseek check-env` to see why"
        )
    return found


@functools.cache
def physical_cores() -> int:
    """Return the physical cores this process may use: hyper-threads counted once, affinity respected."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:
        return max(1, (os.cpu_count() or 2) // (2 if platform.machine() in {"x86_64", "AMD64"} else 1))
    cores = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            cores.add(((topology / "physical_package_id").read_text(), (topology / "core_id").read_text()))
        except OSError:
            return len(allowed)
    return max(1, len(cores))


def use_physical_cores() -> int:
    """Let torch use one thread a physical core, unless OMP_NUM_THREADS says otherwise; return the threads in use."""
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() != physical_cores():
        torch.set_num_threads(physical_cores())
    return torch.get_num_threads()


def bf16_is_fast(device: torch.device) -> bool:
    """Return whether bfloat16 matrix products beat float32 on this device.

    On a CPU that takes AMX or AVX-512 BF16 instructions (measured: 4 to 6 times float32), on CUDA compute capability
    8.0; Apple's GPUs have it too.
    """
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "mps":
        return True
    return any(feature in cpu_features() for feature in ("amx_bf16", "avx512_bf16"))


@functools.cache
def cpu_features() -> frozenset[str]:
    """Return the instruction sets torch can use on this CPU, by the kernel's names (`avx512_bf16`, `amx_int8`)."""
    names = {
        "avx2": "_is_avx2_supported",
        "avx512f": "_is_avx512_supported",
        "avx512_vnni": "_is_avx512_vnni_supported",
        "avx512_bf16": "_is_avx512_bf16_supported",
        "amx_bf16": "_is_amx_tile_supported",
    }
    return frozenset(name for name, probe in names.items() if getattr(torch.cpu, probe, bool)())


def memory_available() -> int | None:
    """Return the bytes of main memory this process can still take (container limits respected), or None if unknown."""
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            used = int((group / "memory.current").read_text(encoding="ascii"))
            stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
            limits.append(int(limit) - used + int(stat.get("inactive_file", 0)))  # cached files give way
    except (OSError, ValueError):
        pass
    return min(limits) if limits else None


def environment() -> dict[str, Any]:
    """Return what a report says about the machine: plain JSON values."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "physical_cores": physical_cores(),
        "threads": torch.get_num_threads(),
        "cpu_features": sorted(cpu_features()),
        "memory_available_bytes": memory_available(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "allocator": os.environ.get("GLIBC_TUNABLES"),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
