"""How deep each parameter lies in a network of any kind: read from its lists of blocks, for rates that fall by depth.

Blocks are the elements of a ModuleList or Sequential, in the order in which the model names them; what comes before the
first is depth 0, what comes after the last is one above it, what lies between belongs to the block before. Towers side
by side are counted one after the other.
Source of layer-wise rates: Clark et al. 2020, "ELECTRA", arXiv:2003.10555; Bao et al. 2021, "BEiT", arXiv:2106.08254.
"""

from __future__ import annotations

from torch import nn


def layer_depths(model: nn.Module) -> dict[str, int]:
    """Return the depth of every parameter by name: 0 for embeddings, 1 and up for blocks, the head last.

    A shared parameter has the depth of its first use. A model without blocks has depth 0 throughout.
    """
    blocks = _blocks(model, "")
    depths: dict[str, int] = {}
    current = 0
    for name, _ in model.named_parameters():
        block = next((index for index, prefix in enumerate(blocks) if name.startswith(prefix)), None)
        if block is not None:
            current = block + 1
        elif blocks and current == len(blocks):
            current += 1
        depths[name] = current
    return depths


def _blocks(module: nn.Module, prefix: str, stage: bool = False) -> list[str]:
    """Return the prefixes of the blocks inside `module`; a list in a list is a `stage`, whose elements are blocks."""
    children = [(f"{prefix}{name}.", child) for name, child in module.named_children() if _has_weights(child)]
    if not stage and not _is_stack(module, [child for _, child in children]):
        return [block for path, child in children for block in _blocks(child, path)]
    found: list[str] = []
    for path, child in children:
        inner = isinstance(child, nn.ModuleList | nn.Sequential) and any(_children(part) for part in child)
        found += _blocks(child, path, stage=True) if inner else [path]
    return found


def _is_stack(module: nn.Module, children: list[nn.Module]) -> bool:
    """Tell a list of blocks from a list of single layers side by side (the heads of a detector)."""
    if isinstance(module, nn.Sequential):
        return len(children) > 1
    return isinstance(module, nn.ModuleList) and any(_children(child) for child in children)


def _children(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
