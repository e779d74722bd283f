"""Weights of -1, 0 and +1 with one scale for each row.

Source: Li, Zhang and Liu 2016, "Ternary Weight Networks", arXiv:1605.04711. Not here: the layers (`ternary_layers`).
"""

from __future__ import annotations

import torch
from torch import Tensor

_THRESHOLD = 0.7
"""Weights below this part of the mean magnitude become zero: nearly the least squared error (section 2.2)."""


def ternary_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return (signs fp32 `(rows, width)` of -1, 0 or 1, scale fp32 `(rows,)`) for `weight` `(rows, width)`.

    The scale is the mean magnitude of the row's weights that are not zero (the least squared error for these signs),
    rounded to what bfloat16 holds, as the kernels use it.
    """
    values = weight.detach().to(torch.float32)
    magnitude = values.abs()
    kept = magnitude > _THRESHOLD * magnitude.mean(dim=1, keepdim=True)
    scale = (magnitude * kept).sum(dim=1) / kept.sum(dim=1).clamp_min(1)
    return values.sign() * kept, scale.to(torch.bfloat16).to(torch.float32)
