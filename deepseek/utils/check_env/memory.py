"""Main memory, and how it is handed out: container limits, shared memory, huge pages, the allocator's settings."""

from __future__ import annotations

import re
from collections.abc import Iterator

from deepseek.utils.check_env.finding import Finding, gib, numbers, ok, problem, warning
from deepseek.utils.check_env.machine import Machine

GIB = 2**30
TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184"
"""The value of GLIBC_TUNABLES that training is fastest with: huge pages, and large blocks kept instead of unmapped."""

THP = "/sys/kernel/mm/transparent_hugepage/enabled"


def memory(machine: Machine) -> Iterator[Finding]:
    """How much memory this process may use, and how much of it is free."""
    total, free, limited = _sizes(machine)
    if total is None:
        yield ok("memory", "memory", "this system does not tell")
        return
    shown = gib(total) + (" (limit of the container)" if limited else "")
    shown += f", {gib(free)} free" if free is not None else ""
    usable = total if free is None else min(total, free)
    fix = "restart the container with more memory (docker run --memory 8g ...)" if limited else _close_programs(machine)
    if usable < GIB:
        yield problem("memory", "memory", shown, why="the smallest training run needs about 1 GiB", fix=fix)
    elif usable < 4 * GIB:
        yield warning("memory", "memory", shown, why="enough for the quickstart, not for much more", fix=fix)
    else:
        yield ok("memory", "memory", shown)


def shared_memory(machine: Machine) -> Iterator[Finding]:
    """The room in /dev/shm, through which data loader processes and NCCL hand over their data."""
    free = machine.free_bytes("/dev/shm") if machine.system == "Linux" else None
    if free is None:
        return
    if free < GIB:
        yield warning(
            "memory",
            "shared memory",
            f"{gib(free)} free in /dev/shm",
            why="data loaders with worker processes and NCCL stop with a bus error when it is full",
            fix=f"docker run --shm-size=8g ...  (or: {machine.root_prefix()}mount -o remount,size=8G /dev/shm)",
        )
    else:
        yield ok("memory", "shared memory", f"{gib(free)} free in /dev/shm")


def huge_pages(machine: Machine) -> Iterator[Finding]:
    """Whether the kernel hands out huge pages to programs that ask for them."""
    mode = re.search(r"\[(\w+)\]", machine.read(THP) or "")
    if mode is None:
        return
    if mode[1] == "never":
        yield warning(
            "memory",
            "huge pages",
            "never",
            why="with small pages the processor spends part of a training step looking up addresses",
            fix=f"echo madvise | {machine.root_prefix()}tee {THP}",
        )
    else:
        yield ok("memory", "huge pages", mode[1])


def allocator(machine: Machine) -> Iterator[Finding]:
    """Whether glibc's allocator has the settings that training is fastest with; the command line sets them itself."""
    if machine.system != "Linux" or machine.libc[0] != "glibc" or numbers(machine.libc[1]) < (2, 35):
        return
    replaced = re.search(r"jemalloc|tcmalloc|mimalloc", machine.environ.get("LD_PRELOAD", ""))
    if replaced:
        yield ok("memory", "allocator", f"{replaced[0]} in place of glibc's")
        return
    have = set(machine.environ.get("GLIBC_TUNABLES", "").split(":"))
    missing = [setting for setting in TUNABLES.split(":") if setting not in have]
    if not missing:
        yield ok("memory", "allocator", "huge pages and large blocks kept (GLIBC_TUNABLES)")
        return
    yield warning(
        "memory",
        "allocator",
        "GLIBC_TUNABLES is not set" if have == {""} else f"GLIBC_TUNABLES lacks {', '.join(missing)}",
        why="it makes training on the CPU about 10% faster; the deepseek command sets it, your own scripts don't",
        fix=f"export GLIBC_TUNABLES={TUNABLES}",
    )


def _sizes(machine: Machine) -> tuple[int | None, int | None, bool]:
    """Return total and free bytes for this process, and whether a container's limit set the total."""
    total = machine.memory if machine.memory is not None else _asked_total(machine)
    available = re.search(r"^MemAvailable:\s+(\d+) kB", machine.read("/proc/meminfo") or "", re.MULTILINE)
    free = int(available[1]) * 1024 if available else None
    for limit_file, usage_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        limit = _whole(machine.read(limit_file))
        if limit is not None and (total is None or limit < total):
            rest = limit - (_whole(machine.read(usage_file)) or 0)
            return limit, max(0, rest if free is None else min(free, rest)), True
    return total, free, False


def _asked_total(machine: Machine) -> int | None:
    if machine.system == "Windows":
        command = "(Get-CimInstance Win32_ComputerSystem).TotalPhysicalMemory"
        return _whole(machine.output("powershell", "-NoProfile", "-Command", command))
    return _whole(machine.output("sysctl", "-n", "hw.memsize")) if machine.system == "Darwin" else None


def _whole(text: str | None) -> int | None:
    stripped = (text or "").strip()
    return int(stripped) if stripped.isdigit() else None


def _close_programs(machine: Machine) -> str:
    return "close other programs; the largest: " + (
        "tasklist" if machine.system == "Windows" else "ps aux | sort -nrk 4 | head"
    )
