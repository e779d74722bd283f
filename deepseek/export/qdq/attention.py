"""Attention as the two matrix products and the softmax it is made of, so that the products can be integer ones.

Source: Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762; the arguments are those of torch's
`scaled_dot_product_attention`. Not here: which edges are rounded (`placement.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return (..., time, value_dim) as torch's function of these arguments does, for inference.

    The scores are scaled after their product, where the factor joins the scales of the integers.
    """
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scores = torch.matmul(query, key.transpose(-2, -1)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        time, key_time = query.shape[-2], key.shape[-2]
        rows, columns = torch.arange(time, device=query.device), torch.arange(key_time, device=query.device)
        attn_mask = columns.unsqueeze(0) <= rows.unsqueeze(1)
    if attn_mask is None:
        return torch.matmul(torch.softmax(scores, -1), value)
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.where(attn_mask, 0.0, torch.finfo(scores.dtype).min)
    return torch.matmul(torch.softmax(scores + attn_mask, -1), value)


ATTENTION: dict[Any, Callable[..., Tensor]] = {torch.ops.aten.scaled_dot_product_attention.default: attention}
"""The decomposition, as `ExportedProgram.run_decompositions` takes it."""
