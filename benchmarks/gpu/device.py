"""`python -m benchmarks.gpu.device`: prints the GPU as JSON, `null` without one; in a process of its own, so that the
front process of the benchmark holds no GPU memory."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks.harness import ROOT


def describe() -> dict[str, Any] | None:
    """Return name, memory, capability and driver's CUDA of the first GPU, None where torch sees none."""
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "memory_gib": round(found.total_memory / 2**30, 1),
        "capability": f"{found.major}.{found.minor}",
        "cuda": torch.version.cuda,
        "count": torch.cuda.device_count(),
    }


def find() -> dict[str, Any] | None:
    """Return what `describe` says in a fresh process; None where that process fails."""
    command = [sys.executable, "-m", "benchmarks.gpu.device"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)  # noqa: S603
    try:
        found: dict[str, Any] | None = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return found


if __name__ == "__main__":
    print(json.dumps(describe()))
