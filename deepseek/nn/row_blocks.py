"""Decoder blocks whose layers are `RowLinear`, computed in two calls of our kernel around the attention.

Before attention: norm, queries, keys and values, rotation. After it: output layer, sum, norm, feed-forward, sum. In
single steps torch's and Python's own time for some thirty small operations a block is that of reading a third of a
small model's weights. Not here: the kernel (`row_products`), the blocks themselves (`transformer`, `models.llama`).
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
from deepseek.nn.row_products import Multiply, Rotate, RowChain, RowNorm, RowWeight
from deepseek.nn.transformer import FeedForward

_X, _PROJECTED, _COSINE, _SINE = range(4)  # places of the tensors before attention
_ATTENDED, _STREAM, _SUM, _WIDE, _OUT = range(5)  # and after it


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

    def projected(self, x: Tensor, turn: Rotation | None = None) -> Tensor:
        """Return queries, keys and values side by side, `(rows, width)`, of `x` fp32 `(rows, d_model)`."""
        if self._before is None:
            self._before = RowChain(self._steps_before())
        steps = [step for step in self._before.steps if isinstance(step, Multiply)]
        found = x.new_empty(x.shape[0], sum(step.weight.out_features for step in steps))
        self._before.run([x, found] if turn is None else [x, found, *(part.contiguous() for part in turn)])
        return found

    def finished(self, attended: Tensor, x: Tensor) -> Tensor:
        """Return the block's output, `(rows, d_model)`, from attention's, `(rows, heads * dim)`, and its own input."""
        if self._after is None:
            self._after = RowChain(self._steps_after())
        wide = self._after.steps[1]
        width = wide.weight.out_features if isinstance(wide, Multiply) else 0
        between, out = torch.empty_like(x), torch.empty_like(x)
        self._after.run([attended, x, between, x.new_empty(x.shape[0], width), out])
        return out

    def _steps_before(self) -> list[Multiply | Rotate]:
        layers: Any = self.attention
        norm = row_norm(self.attention_norm)
        if isinstance(layers, CausalSelfAttention):
            return [Multiply(row_weight(layers.qkv), _X, _PROJECTED, norm=norm)]
        query, key, value = (row_weight(layer) for layer in (layers.query, layers.key, layers.value))
        turned = query.out_features + key.out_features
        return [
            Multiply(query, _X, _PROJECTED, norm=norm),
            Multiply(key, _X, _PROJECTED, query.out_features, norm=norm, again=key.form == query.form),
            Multiply(value, _X, _PROJECTED, turned, norm=norm, again=value.form == key.form),
            Rotate(_PROJECTED, turned, layers.head_dim, _COSINE, _SINE),
        ]

    def _steps_after(self) -> list[Multiply | Rotate]:
        layers: Any = self.feed_forward
        out, norm = (
            Multiply(row_weight(self.attention.out), _ATTENDED, _SUM, residual=_STREAM),
            row_norm(self.feed_forward_norm),
        )
        if isinstance(layers, FeedForward):
            up = Multiply(row_weight(layers.up), _SUM, _WIDE, norm=norm, activation="gelu")
        else:
            gate, other = row_weight(layers.gate), row_weight(layers.up)
            up = Multiply(gate, _SUM, _WIDE, norm=norm, activation="silu", up=other)
        return [out, up, Multiply(row_weight(layers.down), _WIDE, _OUT, residual=_SUM)]

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
        attended = self._attended(heads.split(counts, dim=2), mask, cache, layer)
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
    return bool(gate.form == up.form and gate.values.shape == up.values.shape)


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
    """Return the weight of a `RowLinear`."""
    found: RowWeight = layer.row_weight
    return found
