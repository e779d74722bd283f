"""Sharded values (DTensor of FSDP2 and tensor parallelism) as the global tensors a checkpoint holds, and back.

A checkpoint knows no layout: rank 0 writes whole tensors, and each rank takes its own part when it loads.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from deepseek.errors import CheckpointError


def is_writer() -> bool:
    """Return whether this process writes: rank 0, or the only one."""
    return not _distributed() or torch.distributed.get_rank() == 0


def is_sharded(tensor: Tensor) -> bool:
    """Return whether the tensor lies in parts on several ranks."""
    return type(tensor) is not Tensor and _distributed() and isinstance(tensor, _dtensor())


def full(name: str, tensor: Tensor) -> Tensor:
    """Return the global tensor; where it is sharded every rank must call, in the same order.

    Raises CheckpointError for other tensors that wrap tensors: what they hold is their own affair.
    """
    if is_sharded(tensor):
        whole: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
        return whole
    if is_traceable_wrapper_subclass(tensor):
        raise CheckpointError(
            f"a checkpoint can't hold the tensor '{name}'",
            found=type(tensor).__name__,
            wanted="a plain tensor",
            fix="let state_dict() return the plain tensors it is made of",
        )
    return tensor


def gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return all tensors whole, gathered ones on the CPU; every rank must call."""
    return {
        name: full(name, tensor).cpu() if is_sharded(tensor) else full(name, tensor) for name, tensor in tensors.items()
    }


def placed_like(target: Tensor, whole: Tensor) -> Tensor:
    """Return this rank's part of `whole`, laid out as `target` is; `whole` itself where that is not sharded."""
    if not is_sharded(target):
        return whole
    from torch.distributed.tensor import distribute_tensor

    mesh: Any = target.device_mesh  # type: ignore[attr-defined]
    placements: Any = target.placements  # type: ignore[attr-defined]
    return distribute_tensor(whole.to(target.device), mesh, placements, src_data_rank=None)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@functools.cache
def _dtensor() -> type:
    from torch.distributed.tensor import DTensor  # 0.3 s, only where processes work together

    return DTensor
