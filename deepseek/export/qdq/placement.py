"""Which edges of a captured graph are rounded to 8 bits beyond the inputs of its int8 layers, and where.

Integer kernels pay where values stay 8 bits wide from one product to the next: residual additions of convolutional
networks, matrix products of attention, pooling. Residual streams that a normalisation reads stay float: they are
what carries the accuracy. Not here: with which levels (`calibration.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch.fx import Graph, Node

from deepseek.export.qdq.graph import (
    QUANTIZE,
    WEIGHT,
    aten,
    insert_after,
    is_a,
    levels_of,
    passes_on,
    quantized_nodes,
    rank,
    reason_of,
)

_CONVOLUTIONS = (aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution, aten.conv_transpose2d)
_ACTIVATIONS = (aten.relu, aten.hardtanh, aten.silu, aten.hardswish, aten.gelu, aten.sigmoid, aten.leaky_relu)
_POOLS = (aten.avg_pool2d, aten.adaptive_avg_pool2d, aten.avg_pool3d, aten.adaptive_avg_pool3d)
_PRODUCTS = (aten.matmul, aten.bmm)


class Wish(NamedTuple):
    """An edge to round: what `reader` reads as its argument number `argument`, and why."""

    reader: Node
    argument: int
    reason: str

    @property
    def source(self) -> Node:
        """The node whose values are read."""
        source = self.reader.args[self.argument]
        if not isinstance(source, Node):
            raise TypeError(f"argument {self.argument} of {self.reader.name} is no node")
        return source


def wishes(graph: Graph, *, attention: bool = True) -> list[Wish]:
    """Return the edges that should be rounded too, in the graph's order."""
    found: list[Wish] = []
    for node in graph.nodes:
        if is_a(node, aten.add) and rank(node) >= 4:
            found += _addition(node)
        elif is_a(node, *_POOLS) or _is_spatial_mean(node):
            found += _pool(node)
        elif attention and is_a(node, *_PRODUCTS):
            found += _product(node)
    return found


def merge(graph: Graph) -> None:
    """Let QUANTIZE nodes of one source with the same levels become one."""
    for source in list(graph.nodes):
        first: dict[object, Node] = {}
        for node in list(quantized_nodes(source)):
            same = first.setdefault(levels_of(node), node)
            if same is not node:
                earlier, later = sorted((same, node))
                later.replace_all_uses_with(earlier)
                graph.erase_node(later)
                first[levels_of(earlier)] = earlier


def hoist(graph: Graph) -> None:
    """Move QUANTIZE nodes up past operations that only pass values on, which then run on 8-bit values.

    Rounding and passing on commute, so the graph computes the same. Only where every reader wants the same levels.
    """
    for node in reversed(list(graph.nodes)):
        sources = passes_on(node) if rank(node) else []
        users = list(node.users)
        if not sources or not users or any(user.target is not QUANTIZE for user in users):
            continue
        levels = {levels_of(user) for user in users}
        if len(levels) > 1 or not all(rank(source) for source in sources):
            continue
        rounding = levels.pop()
        for source in dict.fromkeys(sources):
            known = next((n for n in quantized_nodes(source) if levels_of(n) == rounding and n < node), None)
            node.replace_input_with(source, known or insert_after(graph, source, rounding, reason_of(users[0])))
        for user in users:
            user.replace_all_uses_with(node)
            graph.erase_node(user)


def _addition(node: Node) -> list[Wish]:
    """A residual addition: what a convolution makes, and a stream that int8 layers read anyway (or its projection)."""
    operands = [(index, part) for index, part in enumerate(node.args[:2]) if isinstance(part, Node)]
    if len(operands) < 2 or any(rank(part) != rank(node) for _, part in operands) or node.kwargs.get("alpha", 1) != 1:
        return []
    made = [_from(part, lambda n: is_a(n, *_CONVOLUTIONS), 2, sole=True) for _, part in operands]
    rounded = [part.target is QUANTIZE or any(True for _ in quantized_nodes(part)) for _, part in operands]
    if not any(made) or not all(m or r for m, r in zip(made, rounded, strict=True)):
        return []
    return [Wish(node, index, "residual") for index, part in operands if part.target is not QUANTIZE]


def _pool(node: Node) -> list[Wish]:
    source = node.args[0]
    if not isinstance(source, Node) or source.target is QUANTIZE:
        return []
    known = any(True for _ in quantized_nodes(source))
    if known or (len(source.users) == 1 and _from(source, lambda n: is_a(n, *_CONVOLUTIONS, aten.add), 2)):
        return [Wish(node, 0, "pooling")]
    return []


def _product(node: Node) -> list[Wish]:
    operands = [(index, part) for index, part in enumerate(node.args[:2]) if isinstance(part, Node)]
    if len(operands) < 2 or any(_from(part, lambda n: n.target is WEIGHT, 3) for _, part in operands):
        return []
    if any(not rank(part) or _is_stored(part) for _, part in operands):
        return []
    if any(_from(part, lambda n: is_a(n, aten._softmax, aten.softmax, aten._safe_softmax), 4) for _, part in operands):
        return []  # weights of attention: their small values carry much, their product is small
    return [Wish(node, index, "matrix product") for index, part in operands if part.target is not QUANTIZE]


def _is_spatial_mean(node: Node) -> bool:
    source = node.args[0] if node.args else None
    return is_a(node, aten.mean) and isinstance(source, Node) and rank(source) >= 4


def _from(node: Node, wanted: Callable[[Node], bool], steps: int, *, sole: bool = False) -> bool:
    """Return whether `node`, or what it comes from through activations or passing on, is wanted."""
    while True:
        if sole and len(node.users) > 1:
            return False
        if wanted(node):
            return True
        on = passes_on(node)
        through = on or (node.all_input_nodes[:1] if is_a(node, *_ACTIVATIONS) else [])
        if steps == 0 or len(through) != 1:
            return False
        node, steps = through[0], steps - (0 if on else 1)


def _is_stored(node: Node) -> bool:
    """Return whether a node is a parameter or constant of the model (or passed on from one)."""
    on = passes_on(node)
    return _is_stored(on[0]) if on else node.op == "get_attr" or (node.op == "placeholder" and node.name[:2] in _STORED)


_STORED = ("p_", "b_", "c_")
"""How `torch.export` begins the names of parameters, buffers and constants."""
