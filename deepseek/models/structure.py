"""Draws a model as a tree: its blocks, their weights and what they put out; equal blocks in a row are one line.

Shapes come from one forward pass over `example_inputs(1)` on torch's meta device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deepseek.models.catalogue import count_parameters, meta_inputs


@dataclass(frozen=True)
class Block:
    """A part of a model, or `count` equal parts in a row."""

    name: str
    kind: str
    """The class, with its sizes where it is a layer of torch."""
    parameters: int
    """Weights of all `count` of them."""
    output: str
    """Shape or shapes put out, empty where the part was not called."""
    count: int = 1
    parts: tuple[Block, ...] = field(default=())


def structure(model: nn.Module) -> Block:
    """Return the tree of a model that is on the meta device; its root is the model itself."""
    shapes: dict[nn.Module, str] = {}
    names: dict[int, int] = {}
    for _, weight in model.named_parameters(remove_duplicate=False):
        names[id(weight)] = names.get(id(weight), 0) + 1
    shared = {key for key, count in names.items() if count > 1}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        shapes.setdefault(module, _shapes(output))

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            model(**meta_inputs(model))
    finally:
        for handle in handles:
            handle.remove()
    return _block(type(model).__name__, model, shapes, shared)


def draw(root: Block, depth: int | None = None) -> Iterator[tuple[str, str, str, str]]:
    """Yield lines of four columns: tree and name, kind, weights, output; `depth` levels below the root (None: all)."""
    yield root.name, "", count_text(root.parameters), root.output
    yield from _draw(root.parts, "", depth)


def count_text(number: int) -> str:
    """Return a number of weights in as few digits as tell it: `850`, `7.1 K`, `124.4 M`."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return str(number) if number else ""


def _draw(parts: tuple[Block, ...], indent: str, depth: int | None) -> Iterator[tuple[str, str, str, str]]:
    if depth is not None and depth <= 0:
        return
    for index, part in enumerate(parts):
        last = index + 1 == len(parts)
        times = f" x{part.count}" if part.count > 1 else ""
        name = f"{indent}{'└── ' if last else '├── '}{part.name}{times}"
        yield name, part.kind, count_text(part.parameters), part.output
        yield from _draw(part.parts, indent + ("    " if last else "│   "), None if depth is None else depth - 1)


def _block(name: str, module: nn.Module, shapes: dict[nn.Module, str], shared: set[int]) -> Block:
    parts: list[tuple[Any, Block]] = []
    for child_name, child in module.named_children():
        form = _form(child, shapes)
        if child_name.isdigit() and parts and parts[-1][0] == form:
            before = parts[-1][1]
            first = before.name.partition("-")[0] if before.count > 1 else before.name
            joined = f"{first}-{child_name}"
            total = before.parameters + count_parameters(child)
            parts[-1] = form, Block(joined, before.kind, total, before.output, before.count + 1, before.parts)
        else:
            parts.append((form, _block(child_name, child, shapes, shared)))
    blocks = tuple(block for _, block in parts)
    tied = any(id(weight) in shared for weight in module.parameters(recurse=False))
    kind = _kind(module) + (", shared weight" if tied else "")
    return Block(name, kind, count_parameters(module), shapes.get(module, ""), 1, blocks)


def _form(module: nn.Module, shapes: dict[nn.Module, str]) -> tuple[object, ...]:
    """Return what two blocks must have in common to be one line."""
    weights = tuple((name, tuple(weight.shape)) for name, weight in module.named_parameters())
    kinds = tuple(_kind(part) for part in module.modules())
    return weights, kinds, shapes.get(module, "")


def _kind(module: nn.Module) -> str:
    name = type(module).__name__
    if isinstance(module, nn.Linear):
        return f"{name} {module.in_features} -> {module.out_features}"
    if isinstance(module, nn.Embedding):
        return f"{name} {module.num_embeddings} x {module.embedding_dim}"
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        size = "x".join(map(str, module.kernel_size))
        stride = f" / {module.stride[0]}" if any(step > 1 for step in module.stride) else ""
        groups = f", {module.groups} groups" if module.groups > 1 else ""
        return f"{name} {module.in_channels} -> {module.out_channels}, {size}{stride}{groups}"
    return name


def _shapes(output: Any) -> str:
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    shown = [" x ".join(map(str, leaf.shape)) or "scalar" for leaf in leaves[:4]]
    return ", ".join(shown) + (", ..." if len(leaves) > 4 else "")
