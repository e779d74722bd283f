"""How many units a group loses, and which: the least important ones, layer by layer or over all layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepseek.compress.pruning.config import PruneConfig
from deepseek.compress.pruning.groups import Group

_MOST = 0.9
"""No layer loses more than this share of its units where all are ranked together."""


def choose(
    groups: Sequence[Group], found: Sequence[Tensor], before: dict[str, int], share: float, config: PruneConfig
) -> list[tuple[Group, Tensor]]:
    """Return the groups that lose units, with the numbers of these units.

    `found`: what the units are worth. `before`: how many units each group had at the very start; `share` of them will
    be gone after this step.
    """
    ranked = [group.kind != "heads" and config.global_ranking for group in groups]
    bar = _bar([s for s, yes in zip(found, ranked, strict=True) if yes], groups, before, share, ranked)
    removed = []
    for group, score, together in zip(groups, found, ranked, strict=True):
        whole = before[group.name]
        wanted = float((score > bar).sum()) if together else whole * (1 - share)
        if together:
            wanted = max(wanted, whole * (1 - _MOST))
        step = 1 if group.kind == "heads" else config.round_to
        left = min(max(step, round(wanted / step) * step), group.count)
        if left < group.count:
            removed.append((group, score.argsort()[: group.count - left]))
    return removed


def _bar(
    found: list[Tensor], groups: Sequence[Group], before: dict[str, int], share: float, ranked: list[bool]
) -> float:
    """Return the importance that units ranked together must be above."""
    if not found:
        return 0.0
    values = torch.cat(found)
    whole = sum(before[group.name] for group, yes in zip(groups, ranked, strict=True) if yes)
    lose = min(max(0, values.numel() - round(whole * (1 - share))), values.numel() - 1)
    return float(values.kthvalue(lose).values) if lose else -1.0
