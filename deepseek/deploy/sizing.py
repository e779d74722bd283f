"""How much memory and how many cores a server of these bundles asks for, from the sizes of their files.

A rough upper figure, not a measurement: 0.75 GiB for the process with its libraries; the weights twice, since a new
version is opened beside the old one; half as much again for what is computed and kept (caches of keys and values are
bounded by what is free). Measure with `docker stats` or `kubectl top pod`, and say --memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_PROCESS = 768 << 20
_GPU_PROCESS = 3 << 30  # CUDA's libraries and context
_STEP = 256 << 20
_CORES = ((64 << 20, 1), (1 << 30, 2), (8 << 30, 4))


def weight_bytes(bundles: Mapping[str, Path]) -> int:
    """Return the bytes of all files that hold weights: those of each bundle's largest form, versions included."""
    return sum(path.stat().st_size for bundle in bundles.values() for path in bundle.rglob("*.safetensors"))


def default_memory(weights: int, gpu: int = 0) -> str:
    """Return the memory of one server, such as `1536Mi`, for `weights` bytes."""
    need = _GPU_PROCESS + weights * 3 // 2 if gpu else _PROCESS + weights * 5 // 2
    steps = -(-need // _STEP)
    return f"{steps // 4}Gi" if steps % 4 == 0 else f"{steps * 256}Mi"


def default_cpu(weights: int, gpu: int = 0) -> str:
    """Return the cores of one server: more for larger models, a few beside a GPU."""
    if gpu:
        return str(2 + 2 * gpu)
    return str(next((cores for most, cores in _CORES if weights <= most), 8))
