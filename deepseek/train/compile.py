"""Whether `torch.compile` pays for itself, and the compiled step where it does.

Two passes forward and backward on the first batch give the eager time; compiling must win more than it costs. What
fails to compile runs eagerly, and the log says so. Weights and random states are left as they were.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from deepseek.checkpoint.training_state import random_state, restore_random_state
from deepseek.nn import choices
from deepseek.tasks.task import to_device
from deepseek.train.autotune import tune
from deepseek.train.step import TrainStep

logger = logging.getLogger("deepseek.train")

_GAIN = 0.2  # share of a step that compiling saves, at the low end of what was measured
_SECONDS_FIXED, _SECONDS_A_MODULE = 4.0, 0.2  # what compiling costs with an empty cache, measured on GPT


class Preparation(NamedTuple):
    """What was decided before the first step, and why."""

    compiled: bool
    reason: str
    step_seconds: float
    compile_seconds: float
    choices: dict[str, str] = {}
    """The ways of computing that are in force in the run (`deepseek.nn.choices`)."""


def prepare(
    step: TrainStep,
    batches: Sequence[Any],
    *,
    steps: float,
    time_budget: float | None,
    wish: bool | str,
    chosen: dict[str, str] | None = None,
) -> Preparation:
    """Measure, decide, and compile `step.loss_sum` where it pays.

    `steps` are planned (infinity where only `time_budget` seconds bound the run). `chosen` are the ways of computing of
    the run so far; None has them measured, where that pays too.
    """
    if wish is False and time_budget is None:
        return Preparation(False, "switched off by compile: false", 0.0, 0.0, chosen or {})
    randomness = random_state()
    buffers = [(buffer, buffer.clone()) for buffer in step.model.buffers()]  # running means of batch norm
    try:
        with choices.using(chosen or {}):
            return _prepare(step, batches, steps, time_budget, wish, chosen)
    finally:
        step.optimizer.zero_grad(set_to_none=True)
        for buffer, before in buffers:
            buffer.copy_(before)
        restore_random_state(randomness)


def _prepare(
    step: TrainStep,
    batches: Sequence[Any],
    steps: float,
    time_budget: float | None,
    wish: bool | str,
    chosen: dict[str, str] | None,
) -> Preparation:
    fastest = _measure(step, batches)
    planned = min(fastest * steps, time_budget or math.inf)
    compiled, reason = _decide(step, wish, planned)
    seconds = 0.0
    if compiled:
        start = time.perf_counter()
        compiled, problem = _compile(step, batches)
        seconds = time.perf_counter() - start
        reason = problem or reason
        if compiled:
            fastest = _measure(step, batches)
    if chosen is None:
        planned = min(fastest * steps, time_budget or math.inf)
        compiling = seconds if compiled else 0.0
        tuned = tune(step, batches, step_seconds=fastest, planned_seconds=planned, compile_seconds=compiling)
        chosen = tuned.chosen
        seconds += tuned.seconds
        logger.info("ways of computing: %s", tuned.reason)
    return Preparation(compiled, reason, fastest, seconds, chosen)


def _measure(step: TrainStep, batches: Sequence[Any], repeats: int = 2) -> float:
    """Return the seconds of the fastest forward and backward pass over a step's batches."""
    batches = [to_device(batch, step.precision.device) for batch in batches]
    items = sum(step.task.count(batch) for batch in batches)
    fastest = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        step.backward(batches, max(1, items))
        fastest = min(fastest, time.perf_counter() - start)
        step.optimizer.zero_grad(set_to_none=True)
    return fastest


def _decide(step: TrainStep, wish: bool | str, seconds_eager: float) -> tuple[bool, str]:
    if wish is False:
        return False, "switched off by compile: false"
    if not getattr(step.task, "compilable", True):
        return False, f"the task {step.task.name} needs second derivatives, which compiled code does not give"
    if step.precision.device.type == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl")):
        return False, "no C++ compiler found (install g++ to train faster)"
    if wish is True:
        return True, "asked for by compile: true"
    cost = _SECONDS_FIXED + _SECONDS_A_MODULE * sum(1 for _ in step.model.modules())
    gain = _GAIN * seconds_eager
    if gain > cost:
        return True, f"expected to save {gain:.0f} s for about {cost:.0f} s of compiling"
    return False, f"would save about {gain:.0f} s and cost about {cost:.0f} s"


def _compile(step: TrainStep, batches: Sequence[Any]) -> tuple[bool, str | None]:
    plain = step.loss_sum
    try:
        step.loss_sum = torch.compile(plain, dynamic=False)
        _measure(step, batches, repeats=1)
        return True, None
    except Exception as error:  # a compiler may fail in any way; training must not
        step.loss_sum = plain
        torch._dynamo.reset()
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.warning("torch.compile failed, training runs eagerly: %s", first_line)
        return False, f"compiling failed: {first_line}"
