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
from typing import Any

import torch

from deepseek.checkpoint.store import load_newest, save_checkpoint
from deepseek.checkpoint.training_state import (
    optimizer_state,
    random_state,
    restore_model,
    restore_optimizer,
    restore_random_state,
)
from deepseek.errors import CheckpointError, StorageError
from deepseek.files import folder_lock, sweep_temporaries
from deepseek.optim.schedules import learning_rate
from deepseek.train.batches import BatchStream
from deepseek.train.compile import prepare
from deepseek.train.config import TrainConfig
from deepseek.train.interrupt import graceful_interrupt
from deepseek.train.metrics_log import MetricsLog
from deepseek.train.progress import TrainingProgress, wants_progress
from deepseek.train.result import TrainResult
from deepseek.train.step import TrainStep

_REPLAN_EVERY = 10

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
    """Train to the end of the plan, or until Ctrl-C; return the numbers.

    Raises RunLockedError when another run writes to the output folder, CheckpointError when `resume` finds only damaged
    checkpoints, NonFiniteLossError when the loss stays NaN or infinite.
    """
    config, step = run.config, run.step
    accumulate = config.gradient_accumulation_steps
    with contextlib.ExitStack() as stack:
        if run.output_dir is not None:
            stack.enter_context(folder_lock(run.output_dir))
            sweep_temporaries(run.output_dir / "checkpoints")
        torch.manual_seed(config.seed)
        state = _resume_state(run)
        done, plan, result = _plan(run, state)
        if state is not None:
            _restore(step, state)
        metrics = None
        if run.output_dir is not None:
            metrics = MetricsLog(run.output_dir, tensorboard=config.tensorboard, from_step=done)
            stack.callback(metrics.close)
        bar = stack.enter_context(TrainingProgress(plan.steps, done, run.unit, show=wants_progress(config.progress)))
        interrupt = stack.enter_context(graceful_interrupt())
        stream = run.data.iterate(done * accumulate)
        saved = done
        for index in itertools.count(done):
            if index >= plan.steps:
                break
            start = time.perf_counter()
            rate = plan.rate(index)
            for group in step.optimizer.param_groups:
                group["lr"] = rate
            update = step(list(islice(stream, accumulate)))
            result.seconds += time.perf_counter() - start
            if config.time_budget is not None and result.steps % _REPLAN_EVERY == 0:
                plan.keep_to(config.time_budget, result, done)
            result.items += update.items
            result.losses.append(update.loss)
            result.skipped_steps += update.skipped
            result.steps = index + 1
            bar.update(result.steps, update.loss, result.items_per_second)
            if metrics is not None and (result.steps % config.log_every == 0 or result.steps == plan.steps):
                metrics.log(_row(result, update.grad_norm, rate, config.log_every), result.steps)
            if run.validate is not None and (result.steps % plan.validate_every == 0 or result.steps == plan.steps):
                result.val_loss = run.validate()
                if metrics is not None:
                    metrics.log({"seconds": result.seconds, "val_loss": result.val_loss}, result.steps)
            if interrupt.requested:
                result.interrupted = True
                break
            if run.output_dir is not None and result.steps % plan.checkpoint_every == 0:
                saved = _save(run, plan, result, saved)
        bar.finish(result.steps)
        if run.output_dir is not None and saved != result.steps:
            _save(run, plan, result, saved)
    if result.interrupted and run.output_dir is not None:
        logger.warning("stopped at step %d of %d; saved in %s", result.steps, plan.steps, run.output_dir)
    return result


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
        self.validate_every = config.validate_every or max(1, math.ceil(steps / 10))
        self.checkpoint_every = config.checkpoint_every or max(1, math.ceil(steps / 5))

    def keep_to(self, time_budget: float, result: TrainResult, done: int) -> None:
        """Take steps away where they turned out slower than measured at the start, as on a busy machine."""
        here = result.steps - done
        left = max(0.0, time_budget - result.compile_seconds - result.seconds)
        affordable = result.steps + int(left * here / result.seconds)
        if here > 0 and affordable < 0.95 * self.steps:
            self.steps = max(affordable, result.steps + 1)

    def rate(self, index: int) -> float:
        config = self.config
        return learning_rate(
            index,
            peak=config.learning_rate,
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
    return done, _Plan(config, steps, prepared.compiled, prepared.reason), result


def _step_limit(run: TrainingRun) -> float:
    config = run.config
    an_epoch = max(1, len(run.data) // config.gradient_accumulation_steps)
    limits = [float(config.max_steps)] if config.max_steps is not None else []
    if config.epochs is not None:
        limits.append(float(config.epochs * an_epoch))
    if not limits:
        return math.inf if config.time_budget is not None else float(an_epoch)
    return min(limits)


def _row(result: TrainResult, grad_norm: float, rate: float, window: int) -> dict[str, float]:
    recent = result.losses[-window:]
    return {
        "tokens": result.items,
        "seconds": result.seconds,
        "loss": sum(recent) / len(recent),
        "lr": rate,
        "grad_norm": grad_norm,
        "tokens_per_second": result.items_per_second,
    }


def _save(run: TrainingRun, plan: _Plan, result: TrainResult, saved: int) -> int:
    """Write a checkpoint; return the step of the newest one. A full disk is a warning: the older ones stay."""
    folder = run.output_dir
    if folder is None:
        return saved
    step = run.step
    state = {
        "step": result.steps,
        "total_steps": plan.steps,
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
