"""The training loop, top to bottom: rate, batches, step, log, validate, save.

What varies is elsewhere: the arithmetic in `step.py`, the task in `deepseek.tasks`, the order of the data in its
loader. Everything needed to go on is in `_state`; a resumed run does the same steps as one never stopped.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from deepseek.checkpoint.store import load_newest, save_checkpoint
from deepseek.checkpoint.training_state import (
    optimizer_state,
    random_state,
    restore_model,
    restore_optimizer,
    restore_random_state,
    seed_random,
)
from deepseek.errors import CheckpointError, StorageError
from deepseek.optim.schedules import learning_rate
from deepseek.train.batches import BatchStream
from deepseek.train.compile import prepare
from deepseek.train.config import TrainConfig
from deepseek.train.interrupt import graceful_interrupt
from deepseek.train.metrics_log import MetricsLog
from deepseek.train.progress import TrainingProgress, wants_progress
from deepseek.train.result import TrainResult
from deepseek.train.step import TrainStep

_REPLAN_EVERY = 50  # steps; the first few are slower than the rest

logger = logging.getLogger("deepseek.train")


@dataclass
class TrainingRun:
    """What the loop works on."""

    step: TrainStep
    data: BatchStream
    config: TrainConfig
    validate: Callable[[], float] | None = None
    output_dir: Path | None = None
    resume: bool = False
    unit: str = "items"


def train_loop(run: TrainingRun) -> TrainResult:
    """Train to the end of the plan, or until Ctrl-C; return the numbers. The caller holds the output folder.

    Raises CheckpointError when `resume` finds only damaged checkpoints, NonFiniteLossError when the loss stays NaN or
    infinite, StorageError when the last state can't be saved.
    """
    config, step = run.config, run.step
    accumulate = config.gradient_accumulation_steps
    with contextlib.ExitStack() as stack:
        seed_random(config.seed)
        peaks = [float(group.setdefault("initial_lr", group["lr"])) for group in step.optimizer.param_groups]
        state = _resume_state(run)
        done, plan, result = _plan(run, state)
        before = _Before(0, 0.0) if state is None else _Before(int(state["items"]), float(state["seconds"]))
        if state is not None:
            _restore(step, state)
        metrics = None
        if run.output_dir is not None:
            metrics = MetricsLog(run.output_dir, tensorboard=config.tensorboard, from_step=done)
            stack.callback(metrics.close)
        bar = stack.enter_context(TrainingProgress(plan.steps, done, run.unit, show=wants_progress(config.progress)))
        interrupt = stack.enter_context(graceful_interrupt())
        stream = run.data.iterate(done * accumulate)
        stack.callback(getattr(stream, "close", lambda: None))
        saved = done
        for index in itertools.count(done):
            if index >= plan.steps:
                break
            start = time.perf_counter()
            for group, peak in zip(step.optimizer.param_groups, peaks, strict=True):
                group["lr"] = plan.rate(index, peak)
            update = step(list(islice(stream, accumulate)))
            result.seconds += time.perf_counter() - start
            result.items += update.items
            result.losses += [update.loss] if update.items else []
            result.skipped_steps += update.skipped
            result.steps = index + 1
            if state is None and result.steps % _REPLAN_EVERY == 0:
                plan.keep_to_budget(result)
            bar.update(result.steps, update.loss, result.items_per_second)
            if metrics is not None and (result.steps % config.log_every == 0 or result.steps == plan.steps):
                metrics.log(_row(result, before, update.grad_norm, plan.rate(index, peaks[0]), config), result.steps)
            if run.validate is not None and (result.steps % plan.validate_every == 0 or result.steps == plan.steps):
                result.val_loss = run.validate()
                if metrics is not None:
                    row = {"seconds": before.seconds + result.seconds, "val_loss": result.val_loss}
                    metrics.log(row, result.steps)
            if interrupt.requested and result.steps < plan.steps:
                result.interrupted = True
                break
            if run.output_dir is not None and result.steps % plan.checkpoint_every == 0:
                saved = _save(run, plan, result, before, saved)
        bar.finish(result.steps)
        if run.output_dir is not None and saved != result.steps:
            _save(run, plan, result, before, saved)
    if result.interrupted and run.output_dir is not None:
        logger.warning(
            "stopped at step %d of %d and saved in %s; resume=True (--resume) goes on from there",
            *(result.steps, plan.steps, run.output_dir),
        )
    return result


class _Before(NamedTuple):
    """What the run did before this call, so that its log goes on counting."""

    items: int
    seconds: float


@dataclass
class _Plan:
    """The steps of the whole run, fixed at its first start so that a resume follows the same schedule."""

    config: TrainConfig
    steps: int
    compiled: bool
    compile_reason: str

    def __post_init__(self) -> None:
        config, steps = self.config, self.steps
        warmup = min(max(steps // 50, 10), steps // 10) if config.warmup_steps is None else config.warmup_steps
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
        config = self.config
        return learning_rate(
            index,
            peak=peak,
            total_steps=self.steps,
            warmup_steps=self.warmup_steps,
            schedule=config.schedule,
            floor=config.min_lr_ratio,
        )


def _plan(run: TrainingRun, state: dict[str, Any] | None) -> tuple[int, _Plan, TrainResult]:
    """Fix the number of steps, measure, and compile where it pays; return (steps done, plan, an empty result)."""
    config, accumulate = run.config, run.config.gradient_accumulation_steps
    limit = _step_limit(run)
    first = list(islice(run.data.iterate(0), accumulate))
    if state is not None:
        wish: bool | str = state["compiled"] if config.compile == "auto" else config.compile
    else:
        wish = config.compile
    prepared = prepare(run.step, first, steps=limit, time_budget=config.time_budget, wish=wish)
    if state is not None and config.time_budget is not None:
        steps = int(state["total_steps"])
    elif config.time_budget is not None:
        left = max(0.0, config.time_budget - prepared.compile_seconds)
        steps = int(min(limit, max(10, left / (prepared.step_seconds * 1.1))))
    else:
        steps = int(limit)
    done = int(state["step"]) if state is not None else 0
    result = TrainResult(
        steps=done,
        items=0,
        seconds=0.0,
        precision=run.step.precision.name,
        device=str(run.step.precision.device),
        compiled=prepared.compiled,
        compile_reason=prepared.reason,
        compile_seconds=prepared.compile_seconds,
        output_dir=run.output_dir,
        val_loss=state["val_loss"] if state is not None else None,
    )
    logger.info("%s (%s)", "compiled" if prepared.compiled else "running eagerly", prepared.reason)
    plan = _Plan(config, steps, prepared.compiled, prepared.reason)
    if state is not None and steps == state["total_steps"]:
        plan.warmup_steps = int(state["warmup_steps"])
    return done, plan, result


def _step_limit(run: TrainingRun) -> float:
    config, limit = run.config, math.inf
    if config.max_steps is not None:
        limit = float(config.max_steps)
    bounded = config.max_steps is not None or config.time_budget is not None
    if config.epochs is not None or not bounded:
        batches = (config.epochs or 1) * len(run.data)
        limit = min(limit, float(max(1, batches // config.gradient_accumulation_steps)))
    return limit


def _row(result: TrainResult, before: _Before, grad_norm: float, rate: float, config: TrainConfig) -> dict[str, float]:
    recent = [loss for loss in result.losses[-config.log_every :] if math.isfinite(loss)]
    return {
        "tokens": before.items + result.items,
        "seconds": before.seconds + result.seconds,
        "loss": sum(recent) / len(recent) if recent else math.nan,
        "lr": rate,
        "grad_norm": grad_norm,
        "tokens_per_second": result.items_per_second,
    }


def _save(run: TrainingRun, plan: _Plan, result: TrainResult, before: _Before, saved: int) -> int:
    """Write a checkpoint; return the step of the newest one. A full disk is a warning: the older ones stay."""
    folder = run.output_dir
    if folder is None:
        return saved
    step = run.step
    state = {
        "step": result.steps,
        "total_steps": plan.steps,
        "warmup_steps": plan.warmup_steps,
        "items": before.items + result.items,
        "seconds": before.seconds + result.seconds,
        "compiled": plan.compiled,
        "val_loss": result.val_loss,
        "model": step.model.state_dict(),
        "optimizer": optimizer_state(step.optimizer, step.model),
        "scaler": step.scaler.state_dict() if step.scaler is not None else None,
        "random": random_state(),
    }
    try:
        save_checkpoint(folder / "checkpoints", result.steps, state, keep=run.config.keep_checkpoints)
    except StorageError as error:
        if result.steps == plan.steps or result.interrupted:
            raise
        logger.warning("no checkpoint at step %d, training goes on: %s", result.steps, error)
        return saved
    return result.steps


def _resume_state(run: TrainingRun) -> dict[str, Any] | None:
    if not run.resume:
        return None
    if run.output_dir is None:
        raise CheckpointError("nothing to resume: the run has no output folder", fix="set output_dir")
    found = load_newest(run.output_dir / "checkpoints")
    if found is None:
        raise CheckpointError(
            f"{run.output_dir} has no good checkpoint to resume from", fix="start the run anew without resume"
        )
    logger.info("resuming from %s", found[0].name)
    return found[1]


def _restore(step: TrainStep, state: dict[str, Any]) -> None:
    restore_model(step.model, state["model"])
    restore_optimizer(step.optimizer, step.model, state["optimizer"])
    if step.scaler is not None and state["scaler"]:
        step.scaler.load_state_dict(state["scaler"])
    restore_random_state(state["random"])


def take(stream: BatchStream, limit: int | None) -> Iterator[Any]:
    """Yield one epoch of batches, at most `limit`."""
    return islice(stream.iterate(0), min(len(stream), limit or len(stream)))
