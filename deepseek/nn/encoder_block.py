"""The pre-norm transformer block in which every token sees every other one.

Not here: blocks that look only back (`transformer.DecoderBlock`).
Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", arXiv:2010.11929, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.dot_product_attention import attention
from deepseek.nn.dropout import dropout

Activation = Callable[[Tensor], Tensor]


class SelfAttention(nn.Module):
    """Multi-head self-attention over (batch, time, d_model), one projection for queries, keys and values."""

    def __init__(self, d_model: int, num_heads: int, *, qkv_bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=qkv_bias)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (batch, time, d_model). `mask`: as for `attention`; None: all see all."""
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (batch, num_heads, time, head_dim)
        y = attention(query, key, value, mask, dropout=self.dropout if self.training else 0.0)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """Two linear layers with an activation between, over the last dimension."""

    def __init__(self, d_model: int, d_ff: int, *, activation: Activation = F.gelu, dropout: float = 0.0) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff)
        self.down = nn.Linear(d_ff, d_model)
        self.activation = activation
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of x's shape."""
        x = self.down(self.activation(self.up(x)))
        return dropout(x, self.dropout, self.training) if self.dropout else x


class EncoderBlock(nn.Module):
    """Attention, then feed-forward, each on a normalised input and added to it."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        *,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        norm_eps: float = 1e-6,
        activation: Activation = F.gelu,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(d_model, eps=norm_eps)
        self.attention = SelfAttention(d_model, num_heads, qkv_bias=qkv_bias, dropout=attention_dropout)
        self.feed_forward_norm = nn.LayerNorm(d_model, eps=norm_eps)
        self.feed_forward = MLP(d_model, d_ff, activation=activation, dropout=dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (batch, time, d_model) for x of that shape; see `SelfAttention` for `mask`."""
        seen = self.attention(self.attention_norm(x), mask)
        x = x + (dropout(seen, self.dropout, self.training) if self.dropout else seen)
        out: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return out
