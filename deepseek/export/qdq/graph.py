"""What the passes over a captured graph share: which operations only pass values on, and how Q/DQ nodes are put in.

Graphs are those of `torch.export` after functionalisation, in ATen's high-level operators. Not here: the passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node

from deepseek.export.qdq import ops

aten = torch.ops.aten
QUANTIZE: Any = ops.quantize_dequantize._opoverload
WEIGHT: Any = ops.dequantize_weight._opoverload

_REASON = "deepseek_qdq"
_PASSING = {
    aten.max_pool1d,
    aten.max_pool2d,
    aten.max_pool3d,
    aten.view,
    aten.reshape,
    aten._unsafe_view,
    aten.flatten,
    aten.permute,
    aten.transpose,
    aten.t,
    aten.squeeze,
    aten.unsqueeze,
    aten.select,
    aten.slice,
    aten.expand,
    aten.clone,
    aten.contiguous,
    aten.alias,
    aten.detach,
    aten.detach_,
    aten.cat,
    aten.upsample_nearest2d,
    aten.dropout,
}


class Levels(NamedTuple):
    """The levels that values are rounded to: `(integer - zero_point) * scale`."""

    scale: float
    zero_point: int
    signed: bool


def is_a(node: object, *packets: Any) -> bool:
    """Return whether a node calls one of the operators, in any of its overloads."""
    if not isinstance(node, Node) or node.op != "call_function":
        return False
    return getattr(node.target, "overloadpacket", None) in packets


def passes_on(node: Node) -> list[Node]:
    """Return the nodes whose values `node` passes on unchanged (moved, dropped or repeated); empty if it computes."""
    if is_a(node, aten.constant_pad_nd, aten.pad):
        value = node.args[2] if len(node.args) > 2 and is_a(node, aten.constant_pad_nd) else node.kwargs.get("value")
        mode = node.args[2] if len(node.args) > 2 and is_a(node, aten.pad) else "constant"
        return [node.all_input_nodes[0]] if mode == "constant" and not value else []  # zero is always a level
    if not is_a(node, *_PASSING):
        return []
    source = node.args[0]
    if isinstance(source, list | tuple):  # cat; of feature maps only: elsewhere kernels gain nothing
        return [part for part in source if isinstance(part, Node)] if rank(node) >= 4 else []
    return [source] if isinstance(source, Node) else []


def levels_of(node: Node) -> Levels:
    """Return the levels of a QUANTIZE node."""
    scale, zero_point, signed = node.args[1:]
    return Levels(float(scale), int(zero_point), bool(signed))  # type: ignore[arg-type]


def quantized_nodes(source: Node) -> Iterator[Node]:
    """Yield the QUANTIZE nodes that read `source`."""
    return (user for user in source.users if user.target is QUANTIZE)


def insert_after(graph: Graph, source: Node, levels: Levels, reason: str) -> Node:
    """Return a new QUANTIZE node that reads `source`, placed right behind it; nobody reads it yet."""
    place = source
    while place.op == "placeholder" and place.next.op == "placeholder":
        place = place.next
    with graph.inserting_after(place):
        node = graph.call_function(QUANTIZE, (source, *levels))
    node.meta = {name: value for name, value in source.meta.items() if name in ("val", "stack_trace")}
    node.meta[_REASON] = reason
    return node


def reason_of(node: Node) -> str:
    """Return why a QUANTIZE node is there; those of the layers came with the capture."""
    return str(node.meta.get(_REASON, "layer input"))


def rank(node: Node) -> int:
    """Return the number of dimensions of a node's tensor, 0 where it has none."""
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else 0
