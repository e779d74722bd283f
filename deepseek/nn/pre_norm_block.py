"""The pre-norm transformer block from parts: self-attention, attention over an encoder's output, feed-forward.

Each part reads the normalised stream and adds to it. Which norm, attention and feed-forward is the caller's choice;
T5 and Whisper are made of it. Not here: blocks with fused projections (`transformer`, `encoder_block`).
Source: Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", arXiv:2002.04745 (pre-norm).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from deepseek.nn.dropout import dropout
from deepseek.nn.kv_cache import KVCache
from deepseek.nn.multi_head_attention import KeysValues, MultiHeadAttention


class PreNormBlock(nn.Module):
    """Self-attention, cross-attention where given, feed-forward."""

    def __init__(
        self,
        norm: Callable[[], nn.Module],
        attention: MultiHeadAttention,
        feed_forward: nn.Module,
        cross_attention: MultiHeadAttention | None = None,
        dropout: float = 0.0,
    ) -> None:
        """`norm` makes one norm, for each part its own; `dropout` acts on what each part adds to the stream."""
        super().__init__()
        self.attention_norm = norm()
        self.attention = attention
        self.cross_attention_norm = norm() if cross_attention is not None else None
        self.cross_attention = cross_attention
        self.feed_forward_norm = norm()
        self.feed_forward = feed_forward
        self.dropout = dropout

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        context: Tensor | KeysValues | None = None,
        context_mask: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Return (batch, time, d_model).

        `mask`, `cache` and `layer` are for self-attention. `context`: the encoder's output (batch, key_time, d_model)
        or its keys and values for this block; `context_mask` (broadcast over batch, heads, time, key_time) is for it.
        """
        x = x + self._dropped(self.attention(self.attention_norm(x), mask, None, cache, layer))
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            x = x + self._dropped(self.cross_attention(self.cross_attention_norm(x), context_mask, context))
        return x + self._dropped(self.feed_forward(self.feed_forward_norm(x)))

    def _dropped(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training) if self.dropout else x


def context_of(blocks: Iterable[nn.Module], encoded: Tensor) -> list[KeysValues]:
    """Return the keys and values of `encoded` (batch, key_time, d_model) for each block with cross-attention."""
    return [
        block.cross_attention.keys_values(encoded)
        for block in blocks
        if isinstance(block, PreNormBlock) and block.cross_attention is not None
    ]
