"""GPUs that neither vendor's tool shows: Apple's, those whose driver is missing, and none at all."""

from __future__ import annotations

import re
from collections.abc import Iterator

from deepseek.utils.check_env.finding import Finding, ok, problem, warning
from deepseek.utils.check_env.machine import Machine
from deepseek.utils.check_env.torch_facts import TorchFacts

_ON_THE_BUS = re.compile(
    r"^.*(?:VGA|3D|Display).*?:\s*(.*(?:NVIDIA|Advanced Micro Devices.*Instinct).*)$", re.MULTILINE
)


def other_gpus(machine: Machine, facts: TorchFacts) -> Iterator[Finding]:
    """One finding where `nvidia-smi` and `rocm-smi` are both absent, else nothing."""
    if machine.which("nvidia-smi") is not None or machine.which("rocm-smi") is not None:
        return
    on_the_bus = _ON_THE_BUS.search(machine.output("lspci"))
    if on_the_bus:
        yield problem(
            "GPU",
            "GPU driver",
            f"no driver's tool for: {on_the_bus[1].strip()}",
            why="without its driver the GPU can't be used",
            fix="install the vendor's driver, then: nvidia-smi (or rocm-smi) must list the GPU",
        )
    elif facts.mps:
        yield ok("GPU", "Apple GPU", "torch can use it (device mps)")
    elif machine.system == "Darwin" and machine.architecture == "arm64" and facts.error is None:
        yield warning(
            "GPU",
            "Apple GPU",
            f"torch {facts.version} can't use it",
            why="training then runs on the processor alone",
            fix="update macOS to 14 or newer, then: pip install --force-reinstall torch",
        )
    elif facts.gpus:
        yield ok("GPU", "GPU", "; ".join(sorted(set(facts.gpus))))
    else:
        built = f" (torch is built for CUDA {facts.cuda})" if facts.cuda else ""
        yield ok("GPU", "GPU", f"none; the work runs on the CPU{built}")
