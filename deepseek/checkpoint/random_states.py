"""The random numbers of every library that training draws from: seeded, saved and set again.

Python, numpy (its global generator) and torch on the CPU, CUDA, MPS and XPU. Not here: augmentation and the order of
data, which are pure functions of (seed, epoch, index) and need no state but a position.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_random(seed: int) -> None:
    """Seed the random numbers of Python, numpy and torch (CPU and GPUs)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Return the random states of Python, numpy and torch (CPU, and the accelerators that this machine has)."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.array(keys)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        "xpu": torch.xpu.get_rng_state_all() if torch.xpu.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the random states that `random_state` returned; those of accelerators this machine lacks are left out."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy(), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].clone())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    if state.get("mps") is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
    if state.get("xpu") and torch.xpu.is_available():
        torch.xpu.set_rng_state_all(state["xpu"][: torch.xpu.device_count()])
