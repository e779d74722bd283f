"""Gradient checkpointing of blocks with batch norm: the second pass leaves the running statistics alone.

Plain checkpointing would count every batch twice in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deepseek.nn.recompute import recomputed


def recomputed_with_norms(enabled: bool, block: nn.Module, x: Tensor) -> Tensor:
    """Return `block(x)`; with `enabled`, where gradients are wanted, without keeping what it computes inside."""
    # a compiler takes the update of the statistics out of what it computes again
    if not enabled or torch.compiler.is_compiling():
        out: Tensor = recomputed(enabled, block, x)
        return out
    passes = 0

    def run(x: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        if passes == 1:
            return block(x)  # type: ignore[no-any-return]
        with _own_statistics(block):
            return block(x)  # type: ignore[no-any-return]

    out = recomputed(True, run, x)
    return out


@contextmanager
def _own_statistics(block: nn.Module) -> Iterator[None]:
    """Give batch norms copies of their statistics to update, and theirs back afterwards."""
    kept = [
        (norm, name, buffer)
        for norm in block.modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm)
        for name, buffer in norm.named_buffers(recurse=False)
    ]
    try:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer.clone())
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)
