"""Gradient checkpointing of one block: its activations are computed again in the backward pass.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def recomputed(enabled: bool, function: Callable[..., Any], *inputs: Any) -> Any:
    """Return `function(*inputs)`; with `enabled`, where gradients are wanted, without keeping what it computes inside.

    Dropout draws the same numbers both times.
    """
    if enabled and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)
