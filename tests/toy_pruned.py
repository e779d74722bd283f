"""The toy models that can be pruned, with values everywhere: no zero gates, no norms of weight one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from deepseek.models import build

TOYS = {path.stem: path for path in sorted((Path(__file__).parent / "toys").glob("*.yaml")) if path.stem != "lstm"}


def toy(name: str) -> nn.Module:
    """Return a toy in eval mode, the same at every call."""
    torch.manual_seed(0)
    model = build(TOYS[name]).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
        for key, value in model.named_buffers():
            if "running_mean" in key:
                value.normal_(std=0.1)
    return model
