"""Causal self-attention with rotary positions in which several query heads share one head of keys and values.

As many key heads as query heads is multi-head attention, one key head is multi-query attention.
Source: Ainslie et al. 2023, "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints",
arXiv:2305.13245. Counterpart: `LlamaAttention` of transformers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepseek.nn.dot_product_attention import attention
from deepseek.nn.kv_cache import KVCache
from deepseek.nn.rotary import Rotation, rotate_halves


class GroupedQueryAttention(nn.Module):
    """Self-attention over (batch, time, d_model); `num_kv_heads` divides `num_heads`."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        qkv_bias: bool = False,
        out_bias: bool = False,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.query = nn.Linear(d_model, num_heads * head_dim, bias=qkv_bias)
        self.key = nn.Linear(d_model, num_kv_heads * head_dim, bias=qkv_bias)
        self.value = nn.Linear(d_model, num_kv_heads * head_dim, bias=qkv_bias)
        self.out = nn.Linear(num_heads * head_dim, d_model, bias=out_bias)

    def forward(
        self, x: Tensor, turn: Rotation, mask: Tensor | None = None, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """Return (batch, time, d_model). `turn`: the rotation of x's positions; `mask` stands in for the causal one.

        With `cache`, this layer's keys and values are stored there as `layer`, and those before are looked at.
        """
        query = rotate_halves(self._heads(self.query(x)), turn)
        key, value = rotate_halves(self._heads(self.key(x)), turn), self._heads(self.value(x))
        if cache is not None:
            y = cache.attend(layer, query, key, value, mask=mask)
        else:
            y = attention(query, key, value, mask, causal=True)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """Split (batch, time, heads * head_dim) into (batch, heads, time, head_dim)."""
        return torch.unflatten(x, -1, (-1, self.head_dim)).transpose(1, 2)
