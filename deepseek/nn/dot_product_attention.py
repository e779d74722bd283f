"""Scaled dot-product attention, in the form that is fastest where it runs.

Dims: batch, num_heads, time, head_dim. torch's fused kernel serves GPUs and inference; for training on a CPU the plain
matrix products are faster (measured: +18% training speed for a 13.9M GPT at 256 tokens, compiled, in bfloat16) as long
as the (time, key_time) scores are small. Compiled in float32 it is the other way round: GPT-2 2.9 s plain, 2.3 s fused.
`choices` may hold what was measured on this very machine (`deepseek.train.autotune`): then that counts.
Source: Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.nn import choices
from deepseek.nn.dropout import dropout as drop
from deepseek.nn.masks import causal_mask

_PLAIN_TIME = 1024  # above this many tokens the score matrix costs more than the fused kernel


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Return (batch, num_heads, time, value_dim).

    `query` (batch, num_heads, time, head_dim), `key` (batch, key_heads, key_time, head_dim), `value` (batch, key_heads,
    key_time, value_dim); key_heads divides num_heads (grouped-query attention). `mask`: boolean, True where a token may
    look, or a float that is added to the scores; broadcast over (batch, num_heads, time, key_time). With `causal`
    (and no mask) the queries are the last tokens of the keys, and each looks at itself and before.
    `scale` is 1 / sqrt(head_dim) unless given; `dropout` acts on the weights.
    """
    time, key_time = query.shape[2], key.shape[2]
    # chosen, not compared: compiled for many sizes a comparison stays a symbol, which the fused kernel does not take
    grouped = True if key.shape[1] != query.shape[1] else False
    if _plain_is_faster(query, key_time):
        if mask is None and causal:
            mask = causal_mask(time, key_time - time, query.device)
        if grouped:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        scores = (query @ key.transpose(-1, -2)) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if mask is not None:
            hidden = torch.finfo(scores.dtype).min
            scores = scores.masked_fill(~mask, hidden) if mask.dtype == torch.bool else scores + mask
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
        return drop(weights, dropout) @ value
    if mask is None and causal and 1 < time < key_time:
        mask = causal_mask(time, key_time - time, query.device)
    whole = True if causal and mask is None and time == key_time else False
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=whole, scale=scale, enable_gqa=grouped
    )


def _plain_is_faster(query: Tensor, key_time: int) -> bool:
    # the meta device, on which memory is reckoned, stands for the machine's own
    on_cpu = query.device.type == "cpu" or (query.device.type == "meta" and not torch.cuda.is_available())
    if not on_cpu or not torch.is_grad_enabled() or torch.compiler.is_exporting():
        return False
    chosen = choices.current("attention")  # measured for this machine and these shapes
    if chosen is not None:
        return chosen == "plain"
    return key_time <= _PLAIN_TIME and (query.itemsize == 2 or not torch.compiler.is_compiling())
