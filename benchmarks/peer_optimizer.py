"""The optimizer of the raw loops: fused AdamW with decay on matrices only, as nanoGPT has it. Nothing of ours in it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn


class Rates(Protocol):
    """What the optimizer reads from a workload."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def weight_decay(self) -> float: ...


def fused_adamw(model: nn.Module, workload: Rates) -> torch.optim.AdamW:
    """Return the optimizer over all parameters that are trained."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": workload.weight_decay},
        {"params": [weight for weight in weights if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=workload.learning_rate, betas=workload.betas, fused=True)
