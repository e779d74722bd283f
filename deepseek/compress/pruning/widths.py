"""Inner widths as groups, by the shape of known blocks: feed-forward, gated feed-forward, stacked experts, gated
convolution.

Where a hidden unit goes from one linear layer to the next is plain in such a block, and the gated ones (two halves of
one projection, or experts in one tensor) are what a trace of channels gets wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepseek.compress.pruning.groups import Group, Slice, even_slice


def width_groups(model: nn.Module) -> list[Group]:
    """Return the inner widths of all feed-forward layers and experts of a model."""
    groups = []
    for name, module in model.named_modules():
        found = _feed_forward(name, module) or _experts(name, module)
        if found is not None:
            groups.append(found)
    return groups


def gated_conv_groups(model: nn.Module) -> list[Group]:
    """Return the channels inside blocks of a gated linear unit, depthwise convolution, batch norm, linear layer."""
    groups = []
    for name, module in model.named_modules():
        expand, depthwise, contract = (getattr(module, child, None) for child in ("expand", "depthwise", "contract"))
        norm = getattr(module, "inner_norm", None)
        if not (isinstance(expand, nn.Linear) and isinstance(contract, nn.Linear) and isinstance(norm, nn.BatchNorm1d)):
            continue
        count = contract.in_features
        if not isinstance(depthwise, nn.Conv1d) or expand.out_features != 2 * count or depthwise.groups != count:
            continue
        slices = [
            *_layer(f"{name}.expand", expand, count, blocks=2),
            *_layer(f"{name}.depthwise", depthwise, count),
            *_norm(f"{name}.inner_norm", norm, count),
            even_slice(f"{name}.contract.weight", 1, count, count, "reads"),
        ]
        groups.append(Group(f"{name}.expand", "channels", count, tuple(slices)))
    return groups


def sort_experts(model: nn.Module) -> None:
    """Bring the hidden units of stacked experts into the order of their weights' sums, in place.

    Experts can only lose the same numbers; so each loses its own weakest units. No expert's output changes.
    """
    for module in model.modules():
        stacked = _stacked(module)
        if stacked is None:
            continue
        gate, up, down = stacked
        with torch.no_grad():
            size = gate.abs().sum(2) + up.abs().sum(2) + down.abs().sum(1)  # (experts, d_ff)
            order = size.argsort(dim=1, descending=True, stable=True)
            for weight in (gate, up):
                weight.copy_(weight.gather(1, order[:, :, None].expand_as(weight)))
            down.copy_(down.gather(2, order[:, None].expand_as(down)))


def _feed_forward(name: str, module: nn.Module) -> Group | None:
    """Return the units between `up` (and `gate`) and `down`."""
    children = dict(module.named_children())
    up, gate, down = children.get("up"), children.get("gate"), children.get("down")
    if not isinstance(up, nn.Linear) or not isinstance(down, nn.Linear) or up.out_features != down.in_features:
        return None
    makers = {"up": up, "gate": gate} if isinstance(gate, nn.Linear) else {"up": up}
    if gate is not None and ("gate" not in makers or makers["gate"].out_features != up.out_features):
        return None
    count = down.in_features
    slices = [part for child, layer in makers.items() for part in _layer(f"{name}.{child}", layer, count)]
    slices.append(even_slice(f"{name}.down.weight", 1, count, count, "reads"))
    return Group(f"{name}.up", "ffn", count, tuple(slices))


def _experts(name: str, module: nn.Module) -> Group | None:
    stacked = _stacked(module)
    if stacked is None:
        return None
    count = stacked[0].shape[1]
    slices = (
        even_slice(f"{name}.gate", 1, count, count, "makes"),
        even_slice(f"{name}.up", 1, count, count, "makes"),
        even_slice(f"{name}.down", 2, count, count, "reads"),
    )
    return Group(name, "ffn", count, slices)


def _stacked(module: nn.Module) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return gate and up (experts, d_ff, d_model) and down (experts, d_model, d_ff) of stacked experts."""
    own = dict(module.named_parameters(recurse=False))
    if not {"gate", "up", "down"} <= set(own):
        return None
    gate, up, down = own["gate"], own["up"], own["down"]
    fits = gate.ndim == 3 and gate.shape == up.shape and down.shape == gate.transpose(1, 2).shape
    return (gate, up, down) if fits else None


def _layer(name: str, layer: nn.Module, count: int, blocks: int = 1) -> list[Slice]:
    own = dict(layer.named_parameters(recurse=False))
    return [even_slice(f"{name}.{leaf}", 0, count, own[leaf].shape[0], "makes", blocks) for leaf in own]


def _norm(name: str, norm: nn.Module, count: int) -> list[Slice]:
    tensors = {**dict(norm.named_parameters(recurse=False)), **dict(norm.named_buffers(recurse=False))}
    return [even_slice(f"{name}.{leaf}", 0, count, count, "passes") for leaf, t in tensors.items() if t.ndim]
