"""The processor: what it can do, how many cores there are for us, how many threads torch would start.

Flags are spelled as Linux spells them in /proc/cpuinfo; macOS answers through `sysctl`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from deepseek.utils.check_env.finding import Finding, ok, warning
from deepseek.utils.check_env.machine import Machine
from deepseek.utils.check_env.torch_facts import TorchFacts

X86 = {
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX INT8",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
}
ARM = {"sme": "SME", "sve2": "SVE2", "sve": "SVE", "bf16": "BF16", "i8mm": "INT8 matrix", "asimd": "NEON"}

_MAC = {
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_SME": "sme",
    "hw.optional.neon": "asimd",
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512vnni": "avx512_vnni",
}


@dataclass(frozen=True)
class Cpu:
    """The processor's name, its flags, and its physical cores (None where the machine can't tell)."""

    name: str
    flags: frozenset[str]
    cores: int | None


def read_cpu(machine: Machine) -> Cpu:
    """Read what the system tells of its processor."""
    text = machine.read("/proc/cpuinfo") if machine.system == "Linux" else None
    if text:
        return _from_cpuinfo(text, machine)
    if machine.system == "Darwin":
        return _from_sysctl(machine)
    return Cpu(machine.environ.get("PROCESSOR_IDENTIFIER", machine.architecture), frozenset(), None)


def features(machine: Machine, cpu: Cpu) -> Iterator[Finding]:
    """Which vector and matrix units the processor has."""
    arm = machine.architecture.lower().startswith(("arm", "aarch"))
    table = ARM if arm else X86
    units = [shown for flag, shown in table.items() if flag in cpu.flags]
    if not cpu.flags:
        yield ok("CPU", "processor", f"{cpu.name} (this system does not tell its features)")
    elif "asimd" not in cpu.flags if arm else "avx2" not in cpu.flags:
        yield warning(
            "CPU",
            "processor",
            f"{cpu.name}, without {'NEON' if arm else 'AVX2'}",
            why="torch's kernels then run several times slower",
            fix="in a virtual machine, start it with its host's processor (qemu: -cpu host)",
        )
    else:
        yield ok("CPU", "processor", f"{cpu.name}: {', '.join(units)}")


def threads(machine: Machine, cpu: Cpu, facts: TorchFacts) -> Iterator[Finding]:
    """The threads torch would start, held against the physical cores this process may use."""
    cores = usable_cores(machine, cpu)
    text = machine.environ.get("OMP_NUM_THREADS")
    shown = f"{cores} core(s) for this process, OMP_NUM_THREADS " + (f"is {text}" if text is not None else "is not set")
    chosen = facts.threads
    if text is not None:
        match = re.match(r"\s*(\d+)\s*(,|$)", text)
        if match is None:
            yield warning(
                "CPU", "threads", shown, why="it is no number, so it is ignored", fix=_set_threads(machine, cores)
            )
            return
        chosen = int(match[1])
    if chosen is not None and chosen > cores:
        yield warning(
            "CPU",
            "threads",
            shown if text is not None else f"{shown}; torch would start {chosen} threads",
            why="more threads than physical cores wait for each other; training gets slower",
            fix=_set_threads(machine, cores),
        )
    elif chosen is not None and chosen < cores:
        yield warning(
            "CPU",
            "threads",
            shown if text is not None else f"{shown}; torch would start {chosen} thread(s)",
            why=f"{cores - chosen} core(s) stand idle",
            fix=_set_threads(machine, cores),
        )
    else:
        yield ok("CPU", "threads", shown)


def usable_cores(machine: Machine, cpu: Cpu) -> int:
    """Return the physical cores this process may use: not more than its affinity and its container's quota allow."""
    cores = min(cpu.cores or machine.logical_cpus, machine.logical_cpus)
    quota = _quota(machine)
    return max(1, min(cores, int(quota + 0.5)) if quota is not None else cores)


def _quota(machine: Machine) -> float | None:
    """Return the CPUs a container may use (cgroup v2, then v1), or None where nothing limits them."""
    both = (machine.read("/sys/fs/cgroup/cpu.max") or "").split()
    if len(both) != 2:
        folder = "/sys/fs/cgroup/cpu/cpu.cfs_"
        both = [(machine.read(f"{folder}{name}_us") or "").strip() for name in ("quota", "period")]
    if all(value.isdigit() and int(value) > 0 for value in both):
        return int(both[0]) / int(both[1])
    return None


def _set_threads(machine: Machine, cores: int) -> str:
    return f"setx OMP_NUM_THREADS {cores}" if machine.system == "Windows" else f"export OMP_NUM_THREADS={cores}"


def _from_cpuinfo(text: str, machine: Machine) -> Cpu:
    name, flags, cores = "", frozenset[str](), set[tuple[str, str]]()
    for block in text.split("\n\n"):
        values = dict(re.findall(r"^(.*?)[ \t]*:[ \t]*(.*)$", block, re.MULTILINE))
        name = name or values.get("model name", "")
        flags = flags or frozenset((values.get("flags") or values.get("Features") or "").split())
        if "core id" in values:
            cores.add((values.get("physical id", "0"), values["core id"]))
    return Cpu(name or machine.architecture, flags, len(cores) or None)


def _from_sysctl(machine: Machine) -> Cpu:
    name = machine.output("sysctl", "-n", "machdep.cpu.brand_string").strip()
    cores = machine.output("sysctl", "-n", "hw.physicalcpu").strip()
    known = dict(re.findall(r"^(\S+): (\d+)$", machine.output("sysctl", "hw.optional"), re.MULTILINE))
    flags = frozenset(flag for key, flag in _MAC.items() if known.get(key) == "1")
    return Cpu(name or machine.architecture, flags, int(cores) if cores.isdigit() else None)
