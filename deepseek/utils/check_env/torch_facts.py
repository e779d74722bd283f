"""What torch says about itself, asked in a process of its own: a broken build may crash, hang or be gone.

The child sees the same environment, so it finds the torch that training would find.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, fields
from typing import Any

from deepseek.utils.check_env.machine import Machine

SECONDS = 180.0
"""How long the first import of torch may take; on a cold network disk it takes a minute."""

_MARK = "torch facts: "

_PROGRAM = f"""
import ctypes, json, torch

def answer(question):
    try:
        return question()
    except Exception as error:
        return None

def loaded_nccl():
    version = ctypes.c_int()
    ctypes.CDLL("libnccl.so.2").ncclGetVersion(ctypes.byref(version))
    return [version.value // 10000, version.value // 100 % 100, version.value % 100]

gpus = torch.cuda.is_available()
error = None
if torch.version.cuda or torch.version.hip:
    try:
        torch.cuda.init()
    except Exception as caught:
        error = str(caught)
devices = range(torch.cuda.device_count()) if gpus else ()
print({_MARK!r} + json.dumps(dict(
    version=torch.__version__,
    cuda=torch.version.cuda,
    hip=torch.version.hip,
    nccl_built=answer(lambda: list(torch.cuda.nccl.version()) if torch.version.cuda else None),
    nccl_loaded=answer(lambda: loaded_nccl() if torch.version.cuda else None),
    gpus=[torch.cuda.get_device_name(index) for index in devices],
    capabilities=[list(torch.cuda.get_device_capability(index)) for index in devices],
    architectures=torch.cuda.get_arch_list() if gpus else [],
    gpu_error=error,
    mps=bool(answer(lambda: torch.backends.mps.is_available())),
    threads=torch.get_num_threads(),
)))
"""


@dataclass(frozen=True)
class TorchFacts:
    """What torch says: versions it was built for, the GPUs it can use, the threads it would use.

    `error` is set, and all else empty, when torch is missing (`installed` False) or can't be imported.
    """

    installed: bool = True
    error: str | None = None
    version: str = ""
    cuda: str | None = None
    hip: str | None = None
    nccl_built: list[int] | None = None
    nccl_loaded: list[int] | None = None
    gpus: list[str] = field(default_factory=list)
    capabilities: list[list[int]] = field(default_factory=list)
    architectures: list[str] = field(default_factory=list)
    gpu_error: str | None = None
    mps: bool = False
    threads: int | None = None


def ask_torch(machine: Machine) -> TorchFacts:
    """Ask the torch that this interpreter imports. Never raises; what went wrong is in `error`."""
    result = machine.run([sys.executable, "-c", _PROGRAM], SECONDS)
    if result is None:
        return TorchFacts(error=f"importing it took over {SECONDS:.0f} s or could not be started")
    for line in result.out.splitlines():
        if line.startswith(_MARK):
            return _read_facts(line.removeprefix(_MARK))
    last = next((line for line in reversed(result.err.splitlines()) if line.strip()), "no message")
    if "No module named 'torch'" in last:
        return TorchFacts(installed=False, error="not installed")
    if result.code < 0:
        return TorchFacts(error=f"importing it ends the process (signal {-result.code})")
    return TorchFacts(error=last.strip()[:300])


def _read_facts(text: str) -> TorchFacts:
    values: dict[str, Any] = json.loads(text)
    known = {item.name for item in fields(TorchFacts)}
    return TorchFacts(**{name: value for name, value in values.items() if name in known})
