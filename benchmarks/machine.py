"""What the benchmark ran on: versions, hardware, and how busy other processes keep the machine.

Not here: torch. The front process of a benchmark stays small, so that it takes nothing from the contestants.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import time
from pathlib import Path

PACKAGES = ("deepseek-framework", "torch", "transformers", "accelerate", "lightning", "tokenizers", "numpy")
_CPU_FOLDER = Path("/sys/devices/system/cpu")


def usable_cpus() -> list[int]:
    """Return the logical CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def physical_cores() -> int:
    """Return the number of physical cores behind the usable CPUs; of the CPUs where the system does not say."""
    siblings = set()
    for cpu in usable_cpus():
        try:
            siblings.add((_CPU_FOLDER / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip())
        except OSError:
            return len(usable_cpus())
    return len(siblings)


def versions() -> dict[str, str]:
    """Return Python's version and that of each package in `PACKAGES` that is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, object]:
    """Return processor name, cores, memory in GiB and system, as plain JSON values."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cpu": _cpu_name(),
        "cpus": len(usable_cpus()),
        "cores": physical_cores(),
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def commit() -> str | None:
    """Return the commit of the working tree, with "+" where files differ from it; None outside a repository."""
    root = Path(__file__).parent
    try:
        command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


class ForeignLoad:
    """The share of all CPU time, 0 to 1, that processes other than ours and our children used since `start()`.

    Reads `/proc/stat`; `share()` is None where that file is missing. A child counts once it has ended.
    """

    def start(self) -> ForeignLoad:
        """Begin a measurement."""
        self._busy, self._total, self._own = *_system_seconds(), _own_seconds()
        return self

    def share(self) -> float | None:
        """Return the share since `start()`."""
        busy, total = _system_seconds()
        if total <= self._total:
            return None
        foreign = (busy - self._busy) - (_own_seconds() - self._own)
        return round(min(max(foreign / (total - self._total), 0.0), 1.0), 3)


def wait_until_quiet(limit: float, patience: float) -> float | None:
    """Wait until other processes use at most `limit` (a share) of the machine, or `patience` seconds have passed.

    Returns the last share seen, None where the system does not tell.
    """
    deadline = time.monotonic() + patience
    while True:
        load = ForeignLoad().start()
        time.sleep(min(1.0, patience + 0.1))
        share = load.share()
        if share is None or share <= limit or time.monotonic() >= deadline:
            return share


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _system_seconds() -> tuple[float, float]:
    """Return (busy, total) CPU seconds of the whole machine since boot, (0, 0) where unknown."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0.0, 0.0
    tick = os.sysconf("SC_CLK_TCK")
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / tick, sum(fields) / tick


def _own_seconds() -> float:
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
