"""The pre-norm transformer block with GELU.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2).
"""

from __future__ import annotations

from torch import Tensor, nn

from deepseek.nn.causal_attention import CausalSelfAttention
from deepseek.nn.dropout import dropout
from deepseek.nn.gelu import gelu
from deepseek.nn.kv_cache import KVCache


class FeedForward(nn.Module):
    """Two linear layers with GELU (tanh form) between, over the last dimension."""

    def __init__(self, d_model: int, d_ff: int, *, bias: bool, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of x's shape."""
        x = self.down(gelu(self.up(x)))
        return dropout(x, self.dropout, self.training) if self.dropout else x


class DecoderBlock(nn.Module):
    """Attention, then feed-forward, each on a normalised input and added to it."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model, eps=norm_eps, bias=bias)
        self.attention = CausalSelfAttention(d_model, num_heads, bias=bias, dropout=dropout)
        self.feed_forward_norm = nn.LayerNorm(d_model, eps=norm_eps, bias=bias)
        self.feed_forward = FeedForward(d_model, d_ff, bias=bias, dropout=dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """Return (batch, time, d_model); see `CausalSelfAttention` for `mask` and `cache`."""
        x = x + self.attention(self.attention_norm(x), mask, cache, layer)
        out: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return out
