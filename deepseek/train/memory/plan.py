"""The cheapest settings that keep a run within its memory budget, found on shapes alone.

What can be changed without changing the update, by what it costs: the size of the loss's chunks, smaller micro-batches
(their gradients add up to the same), recompute of the cheap part or of whole blocks; and, only where allowed, optimizer
states in 8 bits, which do change it. Not here: reckoning one setting (`memory.py`), the retry when a run is over its
estimate after all (`recovery.py`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from deepseek.errors import MemoryEstimateError
from deepseek.optim.precision import Precision
from deepseek.tasks.task import Task
from deepseek.train.config import TrainConfig
from deepseek.train.memory.estimate import MemoryEstimate, estimate_training, free_memory, parts_in_words
from deepseek.train.memory.recovery import rows_of, split_batch
from deepseek.train.memory.size import in_words, parse_budget
from deepseek.train.recompute import find_blocks

_SMALL_CHUNK = 64 << 20
# relative times of a step, estimated; only their order matters
_POLICY_COST = {"none": 1.0, "selective": 1.12, "full": 1.3}
_HALVING_COST, _CHUNK_COST, _EIGHT_BIT_COST, _NORM_COST = 1.04, 1.01, 1.05, 2.0


@dataclass(frozen=True)
class MemoryTrial:
    """One choice of settings and what it comes to."""

    recompute: str
    parts: int
    """Pieces that each micro-batch is cut into."""
    micro_batch: int
    """Rows of the largest piece."""
    loss_chunk_bytes: int | None
    """`max_logits_bytes` of the task; None is the task's own."""
    optimizer_bits: int
    cost: float
    """Expected time of a step, relative to the plain one."""
    estimate: MemoryEstimate | None = None

    @property
    def peak(self) -> int:
        """The predicted peak in bytes."""
        return self.estimate.total if self.estimate else 0


@dataclass(frozen=True)
class MemoryPlan:
    """The choice for a run, and what else was tried."""

    budget: int
    chosen: MemoryTrial
    tried: tuple[MemoryTrial, ...]

    @property
    def estimate(self) -> MemoryEstimate:
        """The bytes of the choice, by part."""
        return self.chosen.estimate or MemoryEstimate(0, 0, 0, 0)

    def settings(self, config: TrainConfig) -> TrainConfig:
        """Return the run's settings with what was chosen; how to cut micro-batches is in `chosen.parts`."""
        return _settings(config, self.chosen)

    def task(self, task: Task) -> Task:
        """Return the task, or a copy with the chosen size of the loss's chunks."""
        return _chunked(task, self.chosen.loss_chunk_bytes)

    def table(self) -> str:
        """Return the plan and what was tried, as lines of text."""
        lines = [f"memory plan: {in_words(self.chosen.peak)} of {in_words(self.budget)}"]
        lines.append("  " + parts_in_words(self.estimate))
        lines.append(f"  {'recompute':<10} {'micro-batch':>11} {'loss chunks':>12} {'optimizer':>9} {'peak':>10}  time")
        for trial in self.tried:
            mark = "<- chosen" if trial is self.chosen else "" if trial.peak <= self.budget else "too large"
            chunk = "as it is" if trial.loss_chunk_bytes is None else in_words(trial.loss_chunk_bytes)
            lines.append(
                f"  {trial.recompute:<10} {trial.micro_batch:>11} {chunk:>12} {trial.optimizer_bits:>5} bit "
                f"{in_words(trial.peak):>10}  x{trial.cost:.2f} {mark}".rstrip()
            )
        return "\n".join(lines)


def plan_memory(
    build: Callable[[], nn.Module],
    task: Task,
    batch: Any,
    config: TrainConfig,
    device: torch.device,
    *,
    allow_8bit: bool = False,
) -> MemoryPlan:
    """Return the cheapest settings with which training on batches like `batch` fits in `config.memory_budget`.

    A budget of None is all that is free. What `config` asks for (recompute, optimizer_bits) is the least that is done.
    Nothing is allocated; a trial takes about as long as a step of a toy model. Raises ConfigError for a wrong budget,
    MemoryEstimateError, naming the nearest that can be reached, where nothing fits.
    """
    free = free_memory(device)
    budget = parse_budget(1.0 if config.memory_budget is None else config.memory_budget, free)
    with torch.device("meta"):
        model = build()
    reckon = _Reckoner(model, task, batch, config, Precision(config.precision, device))
    tried: list[MemoryTrial] = []
    smallest: MemoryTrial | None = None
    candidates = sorted(_candidates(model, task, batch, config, allow_8bit), key=lambda trial: trial.cost)
    for candidate in candidates:
        if reckon.at_least(candidate) > budget:
            continue
        trial = reckon(candidate)
        tried.append(trial)
        if trial.peak <= budget:
            return MemoryPlan(budget, trial, tuple(tried))
        if smallest is None and len(candidates) > 1:
            smallest = reckon(min(candidates, key=_size_order))
            if smallest.peak > budget:
                break
    nearest = min([*tried, *([smallest] if smallest else [])], key=lambda trial: trial.peak)
    raise MemoryEstimateError(
        "the run can't be made to fit in its memory budget",
        found=f"at least {in_words(nearest.peak)} ({parts_in_words(nearest.estimate or MemoryEstimate(0, 0, 0, 0))}) "
        f"with recompute: {nearest.recompute} and a micro-batch of {nearest.micro_batch}; budget {in_words(budget)}",
        fix=f"set memory_budget to {in_words(nearest.peak + (nearest.peak >> 5))} or more"
        + ("" if allow_8bit or config.optimizer_bits == 8 else ", allow optimizer_bits: 8")
        + ", or take a smaller model, shorter samples or precision: bf16",
    )


class _Reckoner:
    """Reckons trials, and remembers each so that hopeless ones need not be."""

    def __init__(self, model: nn.Module, task: Task, batch: Any, config: TrainConfig, precision: Precision) -> None:
        self.model, self.task, self.batch, self.config, self.precision = model, task, batch, config, precision
        self._known: dict[tuple[Any, ...], MemoryTrial] = {}

    def __call__(self, trial: MemoryTrial) -> MemoryTrial:
        key = _key(trial)
        if key not in self._known:
            settings = _settings(self.config, trial)
            batch = self.batch
            if trial.parts > 1:
                batch = max(split_batch(batch, trial.parts), key=rows_of)
                settings = settings.replace(gradient_accumulation_steps=max(2, settings.gradient_accumulation_steps))
            task = _chunked(self.task, trial.loss_chunk_bytes)
            estimate = estimate_training(lambda: self.model, task, batch, settings, self.precision)
            self._known[key] = replace(trial, estimate=estimate)
        return self._known[key]

    def at_least(self, trial: MemoryTrial) -> int:
        """Return a lower bound: activations shrink at most as the micro-batch does."""
        bounds = [0]
        for known in self._known.values():
            if known.estimate and _key(replace(known, parts=trial.parts)) == _key(trial) and known.parts <= trial.parts:
                activations = known.estimate.activations
                share = activations * trial.micro_batch // max(1, known.micro_batch)
                bounds.append(known.peak - activations + share)
        return max(bounds)


def _candidates(
    model: nn.Module, task: Task, batch: Any, config: TrainConfig, allow_8bit: bool
) -> Iterator[MemoryTrial]:
    policies = list(_POLICY_COST)[list(_POLICY_COST).index(config.recompute) :]
    own_chunk = getattr(task, "max_logits_bytes", None)
    chunks = [None, _SMALL_CHUNK] if own_chunk is not None and own_chunk > _SMALL_CHUNK else [None]
    bits = [config.optimizer_bits, 8] if allow_8bit and config.optimizer_bits != 8 else [config.optimizer_bits]
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    rows = rows_of(batch)
    most = max(1, rows // 2) if normed else rows  # batch norms need two rows
    if not find_blocks(model):
        policies = policies[:1]
    plain = policies[0], bits[0], 1
    for policy in policies:
        for chunk in chunks:
            for bit in bits:
                for halvings in range(most.bit_length()):
                    parts = min(2**halvings, most)
                    if chunk is None and len(chunks) > 1 and (policy, bit, parts) != plain:
                        continue  # smaller chunks cost next to nothing
                    cost = _POLICY_COST[policy] * _HALVING_COST**halvings
                    cost *= _CHUNK_COST if chunk else 1.0
                    cost *= _EIGHT_BIT_COST if bit != config.optimizer_bits else 1.0
                    cost *= _NORM_COST if normed and parts > 1 else 1.0
                    yield MemoryTrial(policy, parts, math.ceil(rows / parts), chunk, bit, cost)


def _size_order(trial: MemoryTrial) -> tuple[int, int, int, int]:
    """Order trials by what they take at least: the smallest micro-batch, whole blocks recomputed, small chunks."""
    order = -list(_POLICY_COST).index(trial.recompute)
    return trial.micro_batch, order, trial.loss_chunk_bytes or 1 << 62, trial.optimizer_bits


def _key(trial: MemoryTrial) -> tuple[Any, ...]:
    return trial.recompute, trial.parts, trial.loss_chunk_bytes, trial.optimizer_bits


def _settings(config: TrainConfig, trial: MemoryTrial) -> TrainConfig:
    changes: dict[str, Any] = {"recompute": trial.recompute, "optimizer_bits": trial.optimizer_bits}
    return config.replace(**{name: value for name, value in changes.items() if value != getattr(config, name)})


def _chunked(task: Task, chunk: int | None) -> Task:
    if chunk is None:
        return task
    changed: Any = copy.copy(task)
    changed.max_logits_bytes = chunk
    return changed  # type: ignore[no-any-return]
