"""Decoder blocks whose layers are `RowLinear`, computed in two calls of our kernel around the attention.

Before attention: norm, queries, keys and values, rotation. After it: output layer, sum, norm, feed-forward, sum. In
single steps torch's and Python's own time for some thirty small operations a block is that of reading a third of a
small model's weights. Not here: the kernel (`row_products`), the blocks themselves (`transformer`, `models.llama`), all
blocks in one call (`deepseek.serve.text.decoder`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.nn.causal_attention import CausalSelfAttention
from deepseek.nn.dot_product_attention import attention
from deepseek.nn.gated_feed_forward import GatedFeedForward
from deepseek.nn.grouped_query_attention import GroupedQueryAttention
from deepseek.nn.rotary import Rotation
from deepseek.nn.row_linear import RowLinear
from deepseek.nn.row_products import Multiply, Rotate, RowChain, RowNorm
from deepseek.nn.row_weight import RowWeight
from deepseek.nn.transformer import FeedForward


class RowBlock(nn.Module):
    """A pre-norm block; the children keep their names, so that the state dict does too."""

    def __init__(
        self, attention_norm: nn.Module, attention: nn.Module, norm: nn.Module, feed_forward: nn.Module
    ) -> None:
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.feed_forward_norm, self.feed_forward = norm, feed_forward
        self._before: RowChain | None = None
        self._after: RowChain | None = None

    @property
    def widths(self) -> tuple[int, int, int]:
        """The numbers of a token that are queries, keys and values; that attention gives; inside the feed-forward."""
        layers: Any = self.attention
        gpt = isinstance(layers, CausalSelfAttention)
        parts = (layers.qkv,) if gpt else (layers.query, layers.key, layers.value)
        up: Any = self.feed_forward.up
        return sum(part.out_features for part in parts), layers.out.in_features, up.out_features

    def projected(self, x: Tensor, turn: Rotation | None = None) -> Tensor:
        """Return queries, keys and values side by side, `(rows, width)`, of `x` fp32 `(rows, d_model)`."""
        if self._before is None:
            self._before = RowChain(self.steps_before(0, 1, 2, 3))
        found = x.new_empty(x.shape[0], self.widths[0])
        self._before.run([x, found] if turn is None else [x, found, *(part.contiguous() for part in turn)])
        return found

    def finished(self, attended: Tensor, x: Tensor) -> Tensor:
        """Return the block's output, `(rows, d_model)`, from attention's, `(rows, heads * dim)`, and its own input."""
        if self._after is None:
            self._after = RowChain(self.steps_after(0, 1, 2, 3, 4))
        between, out = torch.empty_like(x), torch.empty_like(x)
        self._after.run([attended, x, between, x.new_empty(x.shape[0], self.widths[2]), out])
        return out

    def steps_before(self, x: int, projected: int, cosine: int, sine: int) -> list[Multiply | Rotate]:
        """Return the steps before attention; the arguments are places in a chain's list of tensors."""
        layers: Any = self.attention
        norm = row_norm(self.attention_norm)
        if isinstance(layers, CausalSelfAttention):
            return [Multiply(row_weight(layers.qkv), x, projected, norm=norm)]
        query, key, value = (row_weight(layer) for layer in (layers.query, layers.key, layers.value))
        turned = query.out_features + key.out_features
        return [
            Multiply(query, x, projected, norm=norm),
            Multiply(key, x, projected, query.out_features, norm=norm, again=key.form == query.form),
            Multiply(value, x, projected, turned, norm=norm, again=value.form == key.form),
            Rotate(projected, turned, layers.head_dim, cosine, sine),
        ]

    def steps_after(self, attended: int, x: int, between: int, wide: int, out: int) -> list[Multiply]:
        """Return the steps after attention, likewise; `out` may be `x`."""
        layers: Any = self.feed_forward
        first = Multiply(row_weight(self.attention.out), attended, between, residual=x)
        norm = row_norm(self.feed_forward_norm)
        if isinstance(layers, FeedForward):
            up = Multiply(row_weight(layers.up), between, wide, norm=norm, activation="gelu")
        else:
            gate, other = row_weight(layers.gate), row_weight(layers.up)
            up = Multiply(gate, between, wide, norm=norm, activation="silu", up=other)
        return [first, up, Multiply(row_weight(layers.down), wide, out, residual=between)]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._before = self._after = None  # they know where the weights were
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_before": None, "_after": None}

    def _attended(self, parts: Sequence[Tensor], mask: Tensor | None, cache: Any, layer: int) -> Tensor:
        """Return `(rows, heads * dim)` of queries, keys and values, each (batch, time, heads, dim)."""
        query, key, value = (part.transpose(1, 2) for part in parts)
        y: Tensor
        if cache is not None:
            y = cache.attend(layer, query, key, value, mask=mask)
        else:
            y = attention(query, key, value, mask, causal=True)
        return y.transpose(1, 2).reshape(parts[0].shape[0] * parts[0].shape[1], -1)


class RowDecoderBlock(RowBlock):
    """`DecoderBlock` (GPT) in two calls."""

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: Any = None, layer: int = 0) -> Tensor:
        """Return (batch, time, d_model) fp32 of `x` fp32; see `CausalSelfAttention` for `mask` and `cache`."""
        layers: Any = self.attention
        rows = x.reshape(-1, x.shape[-1])
        heads = self.projected(rows).view(*x.shape[:2], 3, layers.num_heads, -1)
        attended = self._attended(heads.unbind(2), mask, cache, layer)
        return self.finished(attended, rows).view(x.shape)


class RowLlamaBlock(RowBlock):
    """`LlamaBlock` in two calls."""

    def forward(
        self, x: Tensor, turn: Rotation, mask: Tensor | None = None, cache: Any = None, layer: int = 0
    ) -> Tensor:
        """Return (batch, time, d_model) fp32 of `x` fp32; see `GroupedQueryAttention` for the other arguments."""
        layers: Any = self.attention
        rows = x.reshape(-1, x.shape[-1])
        if x.shape[0] > 1:
            turn = turn[0].repeat(x.shape[0], 1), turn[1].repeat(x.shape[0], 1)
        heads = self.projected(rows, turn).view(*x.shape[:2], -1, layers.head_dim)
        counts = [part.out_features // layers.head_dim for part in (layers.query, layers.key, layers.value)]
        attended = self._attended(torch.split(heads, counts, dim=2), mask, cache, layer)
        return self.finished(attended, rows).view(x.shape)


def row_block(block: nn.Module) -> nn.Module | None:
    """Return the block in two calls, sharing the children of `block`; None where it is of another kind.

    It is a pre-norm block with the attention of GPT or Llama, all of whose linear layers are `RowLinear`, whose norms
    are in fp32 and which has no dropout in training to do.
    """
    parts: Any = block
    children = dict(block.named_children())
    if set(children) != {"attention_norm", "attention", "feed_forward_norm", "feed_forward"}:
        return None
    linear = [m for m in block.modules() if isinstance(m, nn.Linear) or hasattr(m, "in_features")]
    norms = [children["attention_norm"], children["feed_forward_norm"]]
    if not all(isinstance(layer, RowLinear) for layer in linear) or any(row_norm(norm) is None for norm in norms):
        return None
    if type(parts.attention) is CausalSelfAttention and type(parts.feed_forward) is FeedForward:
        return RowDecoderBlock(norms[0], parts.attention, norms[1], parts.feed_forward).eval()
    gated = type(parts.feed_forward) is GatedFeedForward and parts.feed_forward.activation is nn.functional.silu
    if type(parts.attention) is GroupedQueryAttention and gated and _same_form(parts.feed_forward):
        return RowLlamaBlock(norms[0], parts.attention, norms[1], parts.feed_forward).eval()
    return None


def _same_form(layers: Any) -> bool:
    gate, up = layers.gate.row_weight, layers.up.row_weight
    return bool(gate[:3] == up[:3])


def row_norm(norm: nn.Module) -> RowNorm | None:
    """Return what a chain needs of a norm over the last dimension in fp32, None for another module."""
    if not isinstance(norm, nn.LayerNorm | nn.RMSNorm) or norm.weight is None or norm.weight.dtype != torch.float32:
        return None
    eps = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps
    if isinstance(norm, nn.RMSNorm):
        return RowNorm("rms", norm.weight.detach(), None, eps)
    bias: Tensor | None = norm.bias  # torch says it is always there
    return RowNorm("layer", norm.weight.detach(), None if bias is None else bias.detach(), eps)


def row_weight(layer: Any) -> RowWeight:
    """Return the weight of a `RowLinear` or `RowEmbedding`."""
    found: RowWeight = layer.row_weight
    return found
