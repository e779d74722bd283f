"""What a unit is worth: the size of its weights, the scale of its norm, or the loss that would change without it.

Sources: Li et al. 2016, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710 (L1), summed over all that a unit
owns as in Fang et al. 2023, arXiv:2301.12900; Liu et al. 2017, "Network Slimming", arXiv:1708.06519 (norm scale);
Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", arXiv:1906.10771 (first-order Taylor).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from deepseek.compress.pruning.config import PruneConfig
from deepseek.compress.pruning.groups import Group, unit_sums
from deepseek.errors import ConfigError
from deepseek.tasks.task import Batch, Task

_NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.GroupNorm


def scores(
    model: nn.Module, groups: Sequence[Group], config: PruneConfig, task: Task | None, batches: Iterable[Batch] | None
) -> list[Tensor]:
    """Return for each group (count,) float32, larger for what should stay, one on average.

    Raises ConfigError for "taylor" without a task and batches, and for "bn_scale" on a model without such norms.
    """
    if config.importance == "taylor":
        found = _taylor(model, groups, task, batches)
    elif config.importance == "bn_scale":
        found = _norm_scales(model, groups)
    else:
        found = _magnitudes(model, groups, squared=config.importance == "l2")
    return [score / score.mean().clamp(min=torch.finfo(score.dtype).tiny) for score in found]


def _magnitudes(model: nn.Module, groups: Sequence[Group], squared: bool = False) -> list[Tensor]:
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.ndim > 1}
    values = {name: weight.square() if squared else weight.abs() for name, weight in weights.items()}
    return [_total(group, values) for group in groups]


def _norm_scales(model: nn.Module, groups: Sequence[Group]) -> list[Tensor]:
    scales = {
        f"{name}.weight": module.weight.detach().abs()
        for name, module in model.named_modules()
        if isinstance(module, _NORMS) and module.weight is not None
    }
    with_norm = [any(part.tensor in scales for part in group.slices) for group in groups]
    if not any(with_norm):
        raise ConfigError(
            "importance 'bn_scale' has no norm to read",
            found="no batch or instance norm on what is pruned",
            fix="importance='l1'",
        )
    sizes = _magnitudes(model, groups)
    return [_total(g, scales) if has else size for g, has, size in zip(groups, with_norm, sizes, strict=True)]


def _taylor(
    model: nn.Module, groups: Sequence[Group], task: Task | None, batches: Iterable[Batch] | None
) -> list[Tensor]:
    """Return (sum of weight * gradient)^2 of each unit in each of its tensors, summed over tensors and batches."""
    found = [torch.zeros(group.count) for group in groups]
    seen = 0
    for batch in batches or ():
        if task is None:
            break
        seen += 1
        model.zero_grad(set_to_none=True)
        loss = task.loss(model, batch)
        torch.autograd.backward(loss.sum / max(loss.count, 1))
        with torch.no_grad():
            changes = {n: w * w.grad for n, w in model.named_parameters() if w.ndim > 1 and w.grad is not None}
            for group, total in zip(groups, found, strict=True):
                for part in group.slices:
                    if part.tensor in changes:
                        total += unit_sums(part, changes, group.count).square()
    model.zero_grad(set_to_none=True)
    if not seen:
        raise ConfigError("importance 'taylor' needs gradients", wanted="a task and batches", fix="importance='l1'")
    return found


def _total(group: Group, values: Mapping[str, Tensor]) -> Tensor:
    parts = [unit_sums(part, values, group.count) for part in group.slices if part.tensor in values]
    return torch.stack(parts).sum(0) if parts else torch.ones(group.count)
