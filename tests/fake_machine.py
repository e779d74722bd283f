"""A machine made of dictionaries, for the tests of check_env: nothing of the real one shows through."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from deepseek.utils.check_env.finding import Finding
from deepseek.utils.check_env.machine import Machine, Output
from deepseek.utils.check_env.memory import THP, TUNABLES
from deepseek.utils.check_env.tools import EXTRAS
from deepseek.utils.check_env.versions import CORE

GIB = 2**30

CPUINFO = "\n\n".join(
    f"processor : {thread}\nmodel name : Test CPU 9000\nphysical id : 0\ncore id : {thread // 2}\n"
    "flags : fpu avx avx2 avx512f avx512_bf16 avx512_vnni amx_tile amx_bf16 amx_int8"
    for thread in range(8)
)
"""4 cores of 2 threads each."""

FILES = {
    "/proc/cpuinfo": CPUINFO,
    "/proc/meminfo": f"MemTotal: {64 * GIB // 1024} kB\nMemAvailable:   {48 * GIB // 1024} kB\n",
    THP: "always [madvise] never\n",
    "/headers/Python.h": "",
}

TORCH: dict[str, Any] = {
    "version": "2.13.0+cpu",
    "cuda": None,
    "hip": None,
    "nccl_built": None,
    "nccl_loaded": None,
    "gpus": [],
    "capabilities": [],
    "architectures": [],
    "gpu_error": None,
    "mps": False,
    "threads": 4,
}
"""What the torch of this machine answers."""


def machine(
    files: Mapping[str, str | None] | None = None,
    commands: Mapping[str, str | Output] | None = None,
    environ: Mapping[str, str] | None = None,
    torch: Mapping[str, Any] | Output | None = None,
    missing: Sequence[str] = (),
    **changes: Any,
) -> Machine:
    """Return a Linux machine without a GPU on which all is well, with changes.

    `files` and `commands` come on top of the usual ones (None takes a file away); `torch` changes what torch answers,
    or is the output of the process that asked it; `missing` are programs and distributions that are not there.
    """
    all_files = {**FILES, **(files or {})}
    outputs: dict[str, str | Output] = {"g++ --version": "g++ 13\n", "gcc --version": "gcc 13\n", **(commands or {})}
    programs = {line.partition(" ")[0] for line in outputs} - set(missing)
    distributions = {*CORE, *(name for names in EXTRAS.values() for name in names)} - set(missing)

    def run(command: Sequence[str], seconds: float) -> Output | None:
        if command[1:2] == ["-c"]:
            if isinstance(torch, Output):
                return torch
            return Output(0, "torch facts: " + json.dumps({**TORCH, **(torch or {})}) + "\n")
        answer = outputs.get(" ".join(command)) if command[0] in programs else None
        return Output(0, answer) if isinstance(answer, str) else answer

    plain = Machine(
        system="Linux",
        architecture="x86_64",
        libc=("glibc", "2.39"),
        python=(3, 12, 1),
        encodings={"file system": "utf-8", "text files": "UTF-8", "output": "utf-8"},
        environ={"GLIBC_TUNABLES": TUNABLES, **(environ or {})},
        is_root=False,
        logical_cpus=8,
        memory=64 * GIB,
        open_files=4096,
        folders={"working folder": "/here", "home": "/home", "temporary": "/scratch"},
        headers="/headers",
        run=run,
        read=all_files.get,
        which=lambda name: f"/bin/{name}" if name in programs else None,
        version_of=lambda name: "1.0" if name in distributions else None,
        free_bytes=lambda folder: 100 * GIB,
        port_is_free=lambda port: True,
    )
    return replace(plain, **changes)


def named(findings: Sequence[Finding], name: str) -> Finding:
    """Return the one finding of that name."""
    (finding,) = [finding for finding in findings if finding.name == name]
    return finding
