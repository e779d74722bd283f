"""Multi-head attention with queries, keys and values projected apart: over the same text, or over another (cross).

Not here: one fused projection (`causal_attention`, `encoder_block`), grouped keys, positions inside the scores.
Source: Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762.
"""

from __future__ import annotations

from torch import Tensor, nn

from deepseek.nn.dot_product_attention import attention
from deepseek.nn.kv_cache import KVCache

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of a text, each (batch, num_heads, key_time, head_dim)."""


class MultiHeadAttention(nn.Module):
    """Attention of (batch, time, d_model) over itself, or over a context of the same width."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        bias: bool = True,
        key_bias: bool = True,
        causal: bool = False,
        scale: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Heads are of `head_dim` (d_model / num_heads unless given); `scale` is 1 / sqrt(head_dim) unless given.

        `key_bias` False drops the bias of the keys alone. With `causal`, a token looks at itself and before.
        """
        super().__init__()
        inner = num_heads * (head_dim or d_model // num_heads)
        self.num_heads = num_heads
        self.causal = causal
        self.scale = scale
        self.dropout = dropout
        self.query = nn.Linear(d_model, inner, bias=bias)
        self.key = nn.Linear(d_model, inner, bias=bias and key_bias)
        self.value = nn.Linear(d_model, inner, bias=bias)
        self.out = nn.Linear(inner, d_model, bias=bias)

    def keys_values(self, context: Tensor) -> KeysValues:
        """Return the keys and values of `context` (batch, key_time, d_model), to be used for many queries."""
        return self._heads(self.key(context)), self._heads(self.value(context))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        context: Tensor | KeysValues | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Return (batch, time, d_model).

        `mask` as for `attention`; it takes the place of `causal`. `context`: another text, or its
        keys and values; None is `x` itself. With `cache` (and no context) keys and values are stored there as `layer`.
        """
        query = self._heads(self.query(x))
        key, value = context if isinstance(context, tuple) else self.keys_values(x if context is None else context)
        if cache is not None and context is None:
            key, value = cache.append(layer, key, value)
        dropout = self.dropout if self.training else 0.0
        y = attention(query, key, value, mask, causal=self.causal, dropout=dropout, scale=self.scale)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        batch, time, inner = x.shape
        return x.view(batch, time, self.num_heads, inner // self.num_heads).transpose(1, 2)
