"""Losses, each as a sum and the number of items it sums over; the training loop divides.

`chunked_cross_entropy` never holds all logits at once: a vocabulary of 50,000 at 4,096 tokens would be 800 MB in
float32, and as much again for their gradient.
Sources: Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models", arXiv:2411.09009 (the chunked
form); Szegedy et al. 2015, arXiv:1512.00567 (label smoothing); Chowdhery et al. 2022, "PaLM", arXiv:2204.02311,
section 5 (z-loss).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deepseek.errors import ConfigError

IGNORE = -100
"""The label of a position without a target."""


def cross_entropy_sum(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Tensor:
    """Return the summed cross-entropy in float32, a scalar. `logits`: (items, classes), `labels`: (items,).

    `label_smoothing` is the share of each target that is spread over all classes. `z_loss` times the squared logarithm
    of the softmax's denominator is added for each item, which keeps logits from drifting (PaLM: 1e-4).
    """
    logits = logits.float()
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum", label_smoothing=label_smoothing)
    if z_loss:
        squared = logits.logsumexp(dim=-1).square()
        loss = loss + z_loss * torch.where(labels != IGNORE, squared, 0).sum()
    return loss


def chunked_cross_entropy(
    head: Callable[[Tensor], Tensor],
    features: Tensor,
    labels: Tensor,
    chunk_items: int,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """Return `cross_entropy_sum` of `head(features)` with logits of at most `chunk_items` items in memory.

    `features`: (items, d_model), `labels`: (items,). The backward pass computes each chunk's logits again.
    """

    def chunk_loss(part: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy_sum(head(part), targets, label_smoothing, z_loss)

    total = torch.zeros((), device=features.device)
    for start in range(0, features.shape[0], chunk_items):
        part, targets = features[start : start + chunk_items], labels[start : start + chunk_items]
        if torch.is_grad_enabled():
            total = total + checkpoint(chunk_loss, part, targets, use_reentrant=False)
        else:
            total = total + chunk_loss(part, targets)
    return total


def check_smoothing(label_smoothing: float) -> float:
    """Return the share. Raises ConfigError where it is not in [0, 1)."""
    if not 0 <= label_smoothing < 1:
        raise ConfigError("label_smoothing is a share", found=label_smoothing, wanted="0 or more, below 1")
    return label_smoothing
