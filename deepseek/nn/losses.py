"""Losses, each as a sum and the number of items it sums over; the training loop divides.

`chunked_cross_entropy` never holds all logits at once: a vocabulary of 50,000 at 4,096 tokens would be 800 MB in
float32, and as much again for their gradient.
Source: Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models", arXiv:2411.09009 (the chunked form).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORE = -100
"""The label of a position without a target."""


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross-entropy in float32, a scalar. `logits`: (items, classes), `labels`: (items,)."""
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")


def chunked_cross_entropy(
    head: Callable[[Tensor], Tensor], features: Tensor, labels: Tensor, chunk_items: int
) -> Tensor:
    """Return `cross_entropy_sum(head(features), labels)` with logits of at most `chunk_items` items in memory.

    `features`: (items, d_model), `labels`: (items,). The backward pass computes each chunk's logits again.
    """

    def chunk_loss(part: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy_sum(head(part), targets)

    total = torch.zeros((), device=features.device)
    for start in range(0, features.shape[0], chunk_items):
        part, targets = features[start : start + chunk_items], labels[start : start + chunk_items]
        if torch.is_grad_enabled():
            total = total + checkpoint(chunk_loss, part, targets, use_reentrant=False)
        else:
            total = total + chunk_loss(part, targets)
    return total
