"""Causal multi-head self-attention with one projection for queries, keys and values.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2).
"""

from __future__ import annotations

from torch import Tensor, nn

from deepseek.nn.dot_product_attention import attention
from deepseek.nn.kv_cache import KVCache


class CausalSelfAttention(nn.Module):
    """Self-attention over (batch, time, d_model) in which a token sees itself and what came before."""

    def __init__(self, d_model: int, num_heads: int, *, bias: bool, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.out = nn.Linear(d_model, d_model, bias=bias)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """Return (batch, time, d_model). With `cache`, this layer's keys and values are stored there as `layer`.

        Dropout is for training, which reads no cache.
        """
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (batch, num_heads, time, head_dim)
        if cache is not None:
            y = cache.attend(layer, query, key, value, mask=mask)
        else:
            dropout = self.dropout if self.training else 0.0
            y = attention(query, key, value, mask, causal=True, dropout=dropout)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out
