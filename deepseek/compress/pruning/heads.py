"""Attention heads as groups: a head owns rows of the projections before it and columns of the one after it.

How the heads lie in an attention layer's tensors is written in one table by class of layer, as no trace of a graph
tells it: a view splits the width by `num_heads`. With grouped queries a unit is a key head and the queries that share
it. Attentions that add one bias table to their scores (T5) lose the same heads: which table that is, autograd tells.
Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?", arXiv:1905.10650.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from deepseek.compress.pruning.groups import Group, Slice, even_slice
from deepseek.compress.pruning.tracing import Inputs, leaves_behind, run
from deepseek.nn.causal_attention import CausalSelfAttention
from deepseek.nn.conformer_attention import RelativeSelfAttention
from deepseek.nn.dynamic_conv import DynamicConv
from deepseek.nn.encoder_block import SelfAttention
from deepseek.nn.grouped_query_attention import GroupedQueryAttention
from deepseek.nn.latent_attention import LatentAttention
from deepseek.nn.multi_head_attention import MultiHeadAttention
from deepseek.nn.relative_attention import RelativeAttention
from deepseek.nn.window_attention import WindowAttention


@dataclass(frozen=True)
class HeadLayout:
    """Where the heads of an attention layer are."""

    rows: Mapping[str, int]
    """Linear layers that make them -> in how many blocks (3 for queries, keys and values fused)."""
    columns: tuple[str, ...] = ("out",)
    """Linear layers that read them."""
    tables: Mapping[str, int] = field(default_factory=dict)
    """Parameters with one row for each head -> the dimension."""
    counted: bool = True
    """The layer has `num_heads`; otherwise it is the width of `key` over `head_dim`."""


_FUSED, _APART = {"qkv": 3}, {"query": 1, "key": 1, "value": 1}
_BIASES = {"content_bias": 0, "position_bias": 0}
LAYOUTS: dict[type[nn.Module], HeadLayout] = {
    SelfAttention: HeadLayout(_FUSED),
    CausalSelfAttention: HeadLayout(_FUSED),
    WindowAttention: HeadLayout(_FUSED, tables={"bias_table": 1}),
    RelativeSelfAttention: HeadLayout({**_FUSED, "position": 1}, tables=_BIASES),
    RelativeAttention: HeadLayout({**_APART, "position": 1}, tables=_BIASES),
    MultiHeadAttention: HeadLayout(_APART),
    GroupedQueryAttention: HeadLayout(_APART, counted=False),
    LatentAttention: HeadLayout({"query": 1, "query_up": 1, "kv_up": 1}),
    DynamicConv: HeadLayout({"expand": 2, "kernel": 1}, columns=("out", "kernel")),
}


def head_groups(model: nn.Module, inputs: Inputs) -> list[Group]:
    """Return a group for each attention layer, or for several that share a bias table."""
    layers = {name: module for name, module in model.named_modules() if type(module) in LAYOUTS}
    tables = _shared_tables(model, layers, inputs)
    together: dict[str, list[str]] = defaultdict(list)
    for name in layers:
        together[tables.get(name) or name].append(name)
    groups = []
    for key, names in together.items():
        count = head_count(layers[names[0]])
        slices = [part for name in names for part in _slices(name, layers[name])]
        if key not in names:  # a table of (buckets, heads)
            table = model.get_parameter(key)
            if table.shape[-1] != count or any(head_count(layers[name]) != count for name in names):
                continue
            slices.append(even_slice(key, table.ndim - 1, count, count, "passes"))
        numbers = tuple((name, "num_heads") for name in names if LAYOUTS[type(layers[name])].counted)
        groups.append(Group(names[0], "heads", count, tuple(slices), numbers))
    return groups


def head_count(layer: nn.Module) -> int:
    """Return how many heads can be removed one by one: for grouped queries, those of the keys."""
    if LAYOUTS[type(layer)].counted:
        return int(layer.num_heads)  # type: ignore[arg-type]
    return int(layer.key.out_features // layer.head_dim)  # type: ignore[union-attr, operator]


def _slices(name: str, layer: nn.Module) -> list[Slice]:
    layout, count, slices = LAYOUTS[type(layer)], head_count(layer), []
    for child, blocks in layout.rows.items():
        linear = getattr(layer, child, None)
        if isinstance(linear, nn.Linear):
            for leaf in ("weight", "bias") if linear.bias is not None else ("weight",):
                slices.append(even_slice(f"{name}.{child}.{leaf}", 0, count, linear.out_features, "makes", blocks))
    for child in layout.columns:
        width = layer.get_submodule(child).in_features
        slices.append(even_slice(f"{name}.{child}.weight", 1, count, int(width), "reads"))  # type: ignore[arg-type]
    slices.extend(even_slice(f"{name}.{leaf}", dim, count, count, "passes") for leaf, dim in layout.tables.items())
    return slices


def _shared_tables(model: nn.Module, layers: Mapping[str, nn.Module], inputs: Inputs) -> dict[str, str]:
    """Return for attention layers whose mask is learned the name of the parameter it comes from."""
    names, found = {id(weight): name for name, weight in model.named_parameters()}, {}

    def note(name: str, signature: inspect.Signature) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            mask = signature.bind(*args, **kwargs).arguments.get("mask")
            if isinstance(mask, Tensor) and mask.grad_fn is not None:
                learned = [names[id(leaf)] for leaf in leaves_behind(mask) if id(leaf) in names]
                found.update({name: learned[0]} if learned else {})

        return hook

    kind = MultiHeadAttention
    handles = [
        layer.register_forward_pre_hook(note(name, inspect.signature(layer.forward)), with_kwargs=True)
        for name, layer in layers.items()
        if isinstance(layer, kind)
    ]
    if handles:
        try:
            run(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
    return found
