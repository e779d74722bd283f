"""How much worse a compressed model is: the one figure of a task that decides, and the gate on it.

Not here: measuring the figures (`deepseek.tasks.task.evaluate`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from deepseek.compress.units import Drop
from deepseek.errors import DataError
from deepseek.train.callbacks.monitor import Monitor

_DECIDING = (
    "perplexity",
    "map",
    "dice",
    "accuracy",
    "cer",
    "token_error_rate",
    "token_accuracy",
    "mae",
    "force_mae",
    "energy_mae_per_atom",
)
"""Which of a task's figures decides: the first of these that it measures. See `main_metric` for tasks with none."""


class Metric(NamedTuple):
    """A figure by its name, and whether less of it is better."""

    name: str
    smaller_is_better: bool


def main_metric(figures: Mapping[str, float]) -> Metric:
    """Return the figure that decides, of those that the original model reaches: perplexity, mAP, Dice, accuracy, an
    error rate; a recall, else the loss.

    A share of zero is passed over: it can't get worse, and would let anything pass. Raises DataError where there is no
    figure at all.
    """
    known = (*_DECIDING, *(name for name in figures if "recall" in name))
    name = next((name for name in known if name in figures and _tells(name, figures[name])), "loss")
    if name not in figures:
        raise DataError("the task measures nothing that could decide", found=sorted(figures), wanted="loss")
    return Metric(name, Monitor(f"val_{name}").smaller_is_better)


def _tells(name: str, value: float) -> bool:
    return math.isfinite(value) and (value != 0 or Monitor(f"val_{name}").smaller_is_better)


def drop(metric: Metric, before: Mapping[str, float], after: Mapping[str, float], *, relative: bool) -> float:
    """Return by how much `after` is worse than `before` (below zero: better), as a part of `before` where `relative`.

    Infinite where a figure is missing or not finite, or where a relative drop from zero has no meaning.
    """
    old, new = before.get(metric.name, math.nan), after.get(metric.name, math.nan)
    if relative and metric.name == "perplexity" and "loss" in before and "loss" in after:
        return math.expm1(min(after["loss"] - before["loss"], 700.0))  # perplexity itself may be past all floats
    worse = new - old if metric.smaller_is_better else old - new
    if not math.isfinite(worse):
        return math.inf
    if not relative:
        return worse
    return worse / abs(old) if old else (0.0 if worse <= 0 else math.inf)


def passes(metric: Metric, before: Mapping[str, float], after: Mapping[str, float], allowed: Drop) -> bool:
    """Return whether `after` is at most `allowed` worse than `before`."""
    return drop(metric, before, after, relative=allowed.relative) <= allowed.amount + 1e-12
