"""A group: units (channels, heads ...) that can only be removed from several tensors at once, and the removal.

Who finds groups: `channels` by tracing, `heads` and `widths` by the layout of known blocks. A unit is worth what
`importance` says. Counterpart of a group in Fang et al. 2023, "DepGraph: Towards Any Structural Pruning",
arXiv:2301.12900.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from deepseek.nn.pruned_layers import set_numbers, set_tensor

Role = Literal["makes", "passes", "reads"]
"""A slice makes the units (rows of a layer before), passes them on one by one (norms), or reads them (columns)."""


@dataclass(frozen=True)
class Slice:
    """The part that units have of one dimension of one tensor: index[i] belongs to unit units[i]."""

    tensor: str
    dim: int
    units: Tensor
    index: Tensor
    role: Role


@dataclass(frozen=True)
class Group:
    """`count` units and all they own. `numbers` maps (module, attribute) to what one unit counts there."""

    name: str
    kind: Literal["channels", "heads", "ffn"]
    count: int
    slices: tuple[Slice, ...]
    numbers: tuple[tuple[str, str], ...] = ()
    """Modules' attributes that hold the number of units."""


def even_slice(tensor: str, dim: int, count: int, size: int, role: Role, blocks: int = 1) -> Slice:
    """Return the slice of a dimension of `size` in which `blocks` equal parts hold all units in order.

    A fused projection of queries, keys and values has three blocks; a gated linear unit two.
    """
    units = torch.arange(count).repeat_interleave(size // (blocks * count)).repeat(blocks)
    return Slice(tensor, dim, units, torch.arange(size), role)


def silence(model: nn.Module, removed: Iterable[tuple[Group, Tensor]]) -> None:
    """Set to zero, in place, all that reads the removed units: nothing then depends on them."""
    for group, units in removed:
        for part in group.slices:
            if part.role == "reads":
                with torch.no_grad():
                    model.get_parameter(part.tensor).index_fill_(part.dim, _indices(model, part, units), 0)


def remove(model: nn.Module, removed: Iterable[tuple[Group, Tensor]]) -> None:
    """Take units out of all tensors of their groups, in place."""
    lost: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    for group, units in removed:
        for part in group.slices:
            lost[part.tensor, part.dim].append(_indices(model, part, units))
        for module, attribute in group.numbers:
            left = int(getattr(model.get_submodule(module), attribute)) - units.numel()
            set_numbers(model, module, {attribute: left})
    for (name, dim), parts in lost.items():
        tensor = named_tensor(model, name)
        keep = torch.ones(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
        keep[torch.cat(parts)] = False
        set_tensor(model, name, tensor.detach().index_select(dim, keep.nonzero()[:, 0]).contiguous())


def named_tensor(model: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer by its dotted name."""
    owner, _, leaf = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(owner), leaf)
    return found


def unit_sums(part: Slice, values: Mapping[str, Tensor], count: int) -> Tensor:
    """Return (count,) float32: for each unit the sum of `values[part.tensor]` over what it owns of the tensor."""
    tensor = values[part.tensor].float()
    by_index = tensor.sum([dim for dim in range(tensor.ndim) if dim != part.dim]) if tensor.ndim > 1 else tensor
    return torch.zeros(count).index_add(0, part.units, by_index.cpu()[part.index])


def _indices(model: nn.Module, part: Slice, units: Tensor) -> Tensor:
    return part.index[torch.isin(part.units, units)].to(named_tensor(model, part.tensor).device)
