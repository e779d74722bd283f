"""All groups of a model that a config asks for, without those to be skipped and those that share a weight."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Collection, Sequence

from torch import nn

from deepseek.compress.pruning.channels import channel_groups
from deepseek.compress.pruning.config import PruneConfig
from deepseek.compress.pruning.groups import Group
from deepseek.compress.pruning.heads import LAYOUTS, head_groups
from deepseek.compress.pruning.tracing import Inputs
from deepseek.compress.pruning.widths import gated_conv_groups, width_groups


def find_groups(
    model: nn.Module, inputs: Inputs, config: PruneConfig, skip: Collection[str], skipped: dict[str, str]
) -> list[Group]:
    """Return the groups to choose from. Why others were left out is added to `skipped`."""
    heads, widths, gated = head_groups(model, inputs), width_groups(model), gated_conv_groups(model)
    known = {"heads": heads, "ffn": widths, "channels": gated}
    groups = [group for part in ("heads", "ffn", "channels") if part in config.what for group in known[part]]
    if "channels" in config.what:
        layers = {name for name, module in model.named_modules() if type(module) in LAYOUTS}
        inside = {name for name, _ in model.named_modules() if any(name.startswith(f"{layer}.") for layer in layers)}
        owned = inside | {_owner(part.tensor) for group in widths + gated for part in group.slices} | set(skip)
        groups += channel_groups(model, inputs, owned, skipped)
    tied = _tied(model)
    fitting = []
    for group in groups:
        owners = {_owner(part.tensor) for part in group.slices}
        if owners & set(skip):
            skipped[group.name] = "to be skipped"
        elif tied & {part.tensor for part in group.slices}:
            skipped[group.name] = "it shares a weight with another layer"
        else:
            fitting.append(group)
    return fitting


def modules_to_skip(model: nn.Module, patterns: Sequence[str]) -> set[str]:
    """Return the names of all modules that a pattern matches, and of those inside. Warns of one without a match."""
    names = [name for name, _ in model.named_modules() if name]
    found = set()
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern)
        if not hits:
            warnings.warn(f"skip pattern {pattern!r} matches no module of the model", UserWarning, stacklevel=3)
        found |= {name for name in names if any(name == hit or name.startswith(f"{hit}.") for hit in hits)}
    return found


def _owner(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _tied(model: nn.Module) -> set[str]:
    """Return the names of parameters that have several."""
    names: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(name)
    return {name for same in names.values() if len(same) > 1 for name in same}
