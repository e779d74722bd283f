"""Symmetric InfoNCE: each text finds its image among the batch's, and each image its text.

Sources: van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding", arXiv:1807.03748;
Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.errors import ModelError


def contrastive_loss(first: Tensor, second: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Return the loss in nats, the mean over pairs and both directions: a scalar in float32.

    `first` and `second` (batch, dim): embeddings of length 1, row i of both belongs together. `logit_scale` multiplies
    their cosines (1 / temperature; CLIP's output of that name). Raises ModelError where the shapes differ.
    """
    if first.dim() != 2 or first.shape != second.shape:
        raise ModelError(
            "embeddings must come in pairs",
            found=f"{tuple(first.shape)} and {tuple(second.shape)}",
            wanted="(batch, dim) twice",
        )
    logits = first.float() @ second.float().T * logit_scale
    pair = torch.arange(logits.shape[0], device=logits.device)
    return (F.cross_entropy(logits, pair) + F.cross_entropy(logits.T, pair)) / 2
