"""Self-attention with relative sinusoidal positions, as the Conformer has it, over whole inputs or piece by piece.

What a query gives a key depends on the two contents and on how far apart they are, never on where they stand: so a
stream may run for ever, and a cached key stays right. The position part of the scores is added to the attention as a
float mask. Not here: the causal form with the memory of a segment before (`relative_attention`).
Sources: Dai et al. 2019, "Transformer-XL", arXiv:1901.02860 (the form); Gulati et al. 2020, "Conformer",
arXiv:2005.08100 (its use here, where a frame also looks ahead).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from deepseek.nn.dot_product_attention import attention
from deepseek.nn.float_tensor import float_tensor
from deepseek.nn.positions import relative_position_encoding


class FrameContext(NamedTuple):
    """What all layers of one pass over frames share."""

    positions: Tensor
    """Sinusoids of the distances between queries and keys, see `relative_positions`."""
    mask: Tensor | None = None
    """Boolean, True where a frame may look, broadcast over (batch, num_heads, time, key_time); None: everywhere."""
    valid: Tensor | None = None
    """Boolean (batch, time), False at padding; None: no padding."""


def relative_positions(time: int, key_time: int, dim: int, like: Tensor) -> Tensor:
    """Return (key_time + time, dim) of `like`'s dtype and device: sinusoids of the distances from a query to a key.

    The distances run from key_time - 1 (the last query, the first key) down to -time; the queries are the last `time`
    of the keys. The lowest is used by no pair: it makes the rows fit in `_align`.
    """
    distance = torch.arange(key_time - 1, -time - 1, -1, device=like.device)
    return relative_position_encoding(distance, dim).to(like.dtype)


class RelativeSelfAttention(nn.Module):
    """Multi-head self-attention over (batch, time, d_model) with Transformer-XL positions in both directions."""

    def __init__(self, d_model: int, num_heads: int, *, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.position = nn.Linear(d_model, d_model, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(num_heads, 1, d_model // num_heads))
        self.position_bias = nn.Parameter(torch.zeros(num_heads, 1, d_model // num_heads))
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, context: FrameContext) -> Tensor:
        """Return (batch, time, d_model)."""
        query, key, value = self._heads(x)
        return self._attend(query, key, value, context)

    def stream(self, x: Tensor, context: FrameContext, past: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return what `forward` gives for the next frames `x`, and the state after them: all keys and values.

        `past`: keys and values, each (batch, num_heads, past_time, head_dim), of the frames that `x` may see before it.
        """
        query, key, value = self._heads(x)
        key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        return self._attend(query, key, value, context), (key, value)

    def start(self, batch_size: int) -> tuple[Tensor, ...]:
        """Return the state before the first frame."""
        head_dim = self.out.in_features // self.num_heads
        empty = float_tensor(self.out).new_zeros(batch_size, self.num_heads, 0, head_dim)
        return empty, empty

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (batch, num_heads, time, head_dim)
        return query, key, value

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, context: FrameContext) -> Tensor:
        head_dim = query.shape[3]
        position = self.position(context.positions).view(-1, self.num_heads, head_dim).permute(1, 2, 0)
        by_distance = (query + self.position_bias) @ position  # (batch, num_heads, time, key_time + time)
        bias = _align(by_distance, key.shape[2]) * head_dim**-0.5
        if context.mask is not None:
            bias = bias.masked_fill(~context.mask, torch.finfo(bias.dtype).min / 2)  # half: the sum stays finite
        dropout = self.dropout if self.training else 0.0
        y = attention(query + self.content_bias, key, value, bias, dropout=dropout)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


def _align(by_distance: Tensor, key_time: int) -> Tensor:
    """Return (batch, num_heads, time, key_time) from scores whose last dimension are distances, largest first.

    Query i, the last being `time` - 1, wants its row from column time - 1 - i on. Read as one long row from column
    time - 1, in steps of one less than the width, every row begins where it should.
    """
    time, width = by_distance.shape[-2:]
    flat = by_distance.flatten(-2)[..., time - 1 : time - 1 + time * (width - 1)]
    return flat.reshape(*by_distance.shape[:-1], width - 1)[..., :key_time]
