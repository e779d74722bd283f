"""Structured pruning of a model: a smaller copy whose tensors, not only their values, are smaller.

Groups of units come from `channels` (traced by torch-pruning), `heads` and `widths` (known blocks), whole blocks from
`layers`. Every step is proved on the example inputs: the pruned model must answer as the one whose removed units are
no longer read by anything. Not here: training afterwards (`recover`), 2:4 sparsity (`semi_structured`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deepseek.compress.pruning.choose import choose
from deepseek.compress.pruning.config import PruneConfig
from deepseek.compress.pruning.groups import remove, silence
from deepseek.compress.pruning.importance import scores
from deepseek.compress.pruning.layers import block_influence
from deepseek.compress.pruning.parts import find_groups, modules_to_skip
from deepseek.compress.pruning.proof import answer, check_same
from deepseek.compress.pruning.report import PruneReport
from deepseek.compress.pruning.tracing import Inputs, run
from deepseek.compress.pruning.widths import sort_experts
from deepseek.errors import ConfigError, ModelError, QuantizationError
from deepseek.models.catalogue import OPERATOR_FLOPS, count_parameters
from deepseek.nn.int8_swap import int8_specs
from deepseek.nn.pruned_layers import keep_layers
from deepseek.tasks.task import Batch, Task

M = TypeVar("M", bound=nn.Module)
Counts = dict[str, tuple[int, int]]
"""Group -> units before and after."""


def prune_model(
    model: M,
    config: PruneConfig,
    example_inputs: Inputs | None = None,
    task: Task | None = None,
    batches: Sequence[Batch] | None = None,
    between: Callable[[nn.Module, int], None] | None = None,
) -> tuple[M, PruneReport]:
    """Return a smaller copy of `model` in eval mode, and what was taken out; `model` stays as it is.

    `example_inputs`: by argument name, `model.example_inputs(2)` unless given. `task` and `batches` are for the
    "taylor" importance. `between(pruned, step)` is called after each step but the last: train there. Whole layers go
    in the first step. Inputs, outputs and residual streams with layer norms keep their sizes.

    Raises QuantizationError for a quantized model, ConfigError for a setting that finds nothing to work on, ModelError
    naming the module where a model can't be run or traced, or where its pruned form would answer differently than the
    removed units explain. Warns (UserWarning) of a skip pattern that matches no module.
    """
    _check(model, config, task, batches)
    inputs = dict(example_inputs) if example_inputs is not None else _example(model)
    skip = modules_to_skip(model, config.skip)
    small = copy.deepcopy(model).eval()
    frozen = {id(weight) for weight in small.parameters() if not weight.requires_grad}
    small.requires_grad_(True)
    shapes, flops = [tuple(tensor.shape) for tensor in run(small, inputs)], _flops(small, inputs)
    kept: Counts = _drop_layers(small, inputs, config.ratio, skip) if "layers" in config.what else {}
    frozen_names = {name for name, weight in small.named_parameters() if id(weight) in frozen}
    reasons: dict[str, str] = {}
    widths: Counts = {}
    for step in range(1, config.iterative_steps + 1):
        share = config.ratio * step / config.iterative_steps
        _prune_step(small, inputs, config, share, (skip, reasons, widths), (task, batches))
        if between is not None and step < config.iterative_steps:
            between(small, step)
            small.eval().requires_grad_(True)
    kept.update(widths)
    if not any(after < whole for whole, after in kept.values()):
        raise ConfigError(
            "nothing was pruned",
            found=f"{config.what} with ratio {config.ratio} and round_to {config.round_to}; left out: {reasons}",
            wanted="parts that the model has, wider than round_to",
            fix="lower round_to, raise ratio, or name other parts",
        )
    after = [tuple(tensor.shape) for tensor in run(small, inputs)]
    if after != shapes:
        raise ModelError("pruning changed the shape of the output", found=after, wanted=shapes)
    for name, weight in small.named_parameters():
        weight.requires_grad_(name not in frozen_names)
    sizes = count_parameters(model), count_parameters(small)
    return small, PruneReport(sizes, (flops, _flops(small, inputs)), kept, reasons)


def _prune_step(
    model: nn.Module,
    inputs: Inputs,
    config: PruneConfig,
    share: float,
    notes: tuple[Collection[str], dict[str, str], Counts],
    data: tuple[Task | None, Sequence[Batch] | None],
) -> None:
    """Take units out until `share` of those at the very start is gone, and prove it. `notes`: skip, skipped, counts."""
    skip, skipped, counts = notes
    if "ffn" in config.what:
        sort_experts(model)
    groups = find_groups(model, inputs, config, skip, skipped)
    if not groups:
        return
    for group in groups:
        counts[group.name] = (counts.get(group.name, (group.count, 0))[0], group.count)
    before = {group.name: counts[group.name][0] for group in groups}
    removed = choose(groups, scores(model, groups, config, *data), before, share, config)
    silence(model, removed)
    silenced = answer(model, inputs)
    remove(model, removed)
    check_same(silenced, answer(model, inputs), [group.name for group, _ in removed])
    counts.update({g.name: (before[g.name], g.count - units.numel()) for g, units in removed})


def _drop_layers(model: nn.Module, inputs: Inputs, ratio: float, skip: Collection[str]) -> Counts:
    """Take out the blocks that change their input least. Lists inside of lists go first, and alone."""
    found = block_influence(model, inputs)
    counts: Counts = {}
    for name, influence in found.items():
        if any(other.startswith(f"{name}.") for other in found):
            continue
        free = {index: value for index, value in influence.items() if f"{name}.{index}" not in skip}
        members = len(list(model.get_submodule(name).children()))
        gone = sorted(free, key=free.__getitem__)[: min(int(len(free) * ratio), members - 1)]
        if gone:
            keep_layers(model, name, [index for index in range(members) if index not in gone])
            counts[name] = (members, members - len(gone))
    return counts


def _check(model: nn.Module, config: PruneConfig, task: Task | None, batches: Sequence[Batch] | None) -> None:
    integers = (torch.int8, torch.uint8)
    quantized = [name for name, value in model.state_dict().items() if value.dtype in integers]
    if quantized or int8_specs(model):
        raise QuantizationError(
            "a quantized model can't be pruned",
            found=f"integer weights, first '{(quantized or list(int8_specs(model)))[0]}'",
            wanted="floating-point weights",
            fix="prune first, then quantize",
        )
    if config.importance == "taylor" and (task is None or not batches):
        raise ConfigError("importance 'taylor' needs gradients", wanted="a task and batches", fix="importance='l1'")
    if any(weight.is_meta for weight in model.parameters()):
        raise ModelError("a model without values can't be pruned", found="weights on the meta device")


def _example(model: nn.Module) -> dict[str, Any]:
    make = getattr(model, "example_inputs", None)
    if make is None:
        raise ModelError(f"{type(model).__name__} has no example inputs", fix="give example_inputs={name: tensor}")
    return cast("dict[str, Any]", make(2))


def _flops(model: nn.Module, inputs: Mapping[str, Any]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=OPERATOR_FLOPS) as counter:
        model(**inputs)
    return int(counter.get_total_flops())
