"""The plan of a run: its steps, rates and intervals, fixed at its first start so that a resume follows the same.

Not here: the loop that walks it (`loop.py`).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any

from deepseek.nn import choices
from deepseek.optim.schedules import default_warmup_steps, learning_rate
from deepseek.train.compile import prepare
from deepseek.train.config import TrainConfig
from deepseek.train.prefetch import check_prefetch, decide
from deepseek.train.result import TrainResult
from deepseek.train.run import TrainingRun

logger = logging.getLogger("deepseek.train")


@dataclass
class Plan:
    """Steps, warm-up, and how often to validate and save; `compiled` is part of it, so that a resume computes alike."""

    config: TrainConfig
    steps: int
    compiled: bool
    compile_reason: str
    prefetch: bool = False
    choices: dict[str, str] = field(default_factory=dict)
    """The ways of computing that were measured to be fastest, part of the checkpoint too."""

    def __post_init__(self) -> None:
        config, steps = self.config, self.steps
        default = default_warmup_steps(config.schedule, steps)
        warmup = default if config.warmup_steps is None else config.warmup_steps
        self.warmup_steps = min(warmup, steps)
        self._measured = (0, 0.0)
        self.validate_every = config.validate_every or max(1, math.ceil(steps / 10))
        self.checkpoint_every = config.checkpoint_every or max(1, math.ceil(steps / 5))

    def keep_to_budget(self, result: TrainResult) -> None:
        """Under a time budget, set the number of steps anew from the speed of the latest ones: machines get busy."""
        if self.config.time_budget is None or result.steps >= self.steps:
            return
        since, before = self._measured
        self._measured = (result.steps, result.seconds)
        left = max(0.0, self.config.time_budget - result.compile_seconds - result.seconds)
        affordable = result.steps + int(left * (result.steps - since) / (result.seconds - before))
        self.steps = max(min(affordable, self.config.max_steps or affordable), result.steps + 1)

    def rate(self, index: int, peak: float) -> float:
        """Return the learning rate of step `index` (from 0)."""
        config = self.config
        return learning_rate(
            index,
            peak=peak,
            total_steps=self.steps,
            warmup_steps=self.warmup_steps,
            schedule=config.schedule,
            floor=config.min_lr_ratio,
            decay_share=config.decay_share,
            decay_shape=config.decay_shape,
        )


def make_plan(run: TrainingRun, saved: dict[str, Any] | None) -> tuple[Plan, TrainResult]:
    """Fix the number of steps, measure, and compile where it pays; return the plan and an empty result."""
    config = run.config
    limit = _step_limit(run)
    first = next(run.steps.iterate(0)).batches
    wish: bool | str = config.compile
    if saved is not None and wish == "auto":
        wish = bool(saved["compiled"])
    chosen = choices.known(saved.get("choices") or {}) if saved is not None else None
    prepared = prepare(run.step, first, steps=limit, time_budget=config.time_budget, wish=wish, chosen=chosen)
    if saved is not None and config.time_budget is not None:
        steps = int(saved["total_steps"])
    elif config.time_budget is not None:
        left = max(0.0, config.time_budget - prepared.compile_seconds)
        steps = int(min(limit, max(10, left / (prepared.step_seconds * 1.1))))
    else:
        steps = int(limit)
    result = TrainResult(
        steps=int(saved["step"]) if saved is not None else 0,
        items=0,
        seconds=0.0,
        precision=run.step.precision.name,
        device=str(run.step.precision.device),
        compiled=prepared.compiled,
        compile_reason=prepared.reason,
        compile_seconds=prepared.compile_seconds,
        output_dir=run.output_dir,
    )
    logger.info("%s (%s)", "compiled" if prepared.compiled else "running eagerly", prepared.reason)
    micro_batch_seconds = prepared.step_seconds / max(1, len(first))
    plan = Plan(config, steps, prepared.compiled, prepared.reason, _prefetches(run, micro_batch_seconds))
    plan.choices = prepared.choices
    if saved is not None and steps == saved["total_steps"]:
        plan.warmup_steps = int(saved["warmup_steps"])
    return plan, result


def _prefetches(run: TrainingRun, micro_batch_seconds: float) -> bool:
    """Return whether batches are made ahead: as asked, or measured where the time of a step is known."""
    wish, device = run.config.prefetch, run.step.precision.device
    if wish is True:
        check_prefetch(run.data)
    if wish != "auto":
        return wish
    if micro_batch_seconds == 0 and device.type != "cuda":
        return False
    decision = decide(run.data, micro_batch_seconds, device)
    logger.info("%s ahead (%s)", "batches are made" if decision.prefetch else "no batches are made", decision.reason)
    return decision.prefetch


def _step_limit(run: TrainingRun) -> float:
    config, limit = run.config, math.inf
    if config.max_steps is not None:
        limit = float(config.max_steps)
    bounded = config.max_steps is not None or config.time_budget is not None
    if config.epochs is not None or not bounded:
        limit = min(limit, float(run.steps.steps_in((config.epochs or 1) * len(run.data))))
    return limit
