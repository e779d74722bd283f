"""Which checkpoints stay and which go: the newest, the best by a metric, and every m-th for ever.

One goes only when a newer one is committed, and in a way that a kill can't leave half a checkpoint: it is renamed to
a temporary name first, which the next start sweeps away. Free of torch: the writer process imports it.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from deepseek.checkpoint.manifest import NAME, list_folders, read_json, step_of
from deepseek.errors import CheckpointError, ConfigError
from deepseek.faults import fault_point

Mode = Literal["min", "max"]


@dataclass(frozen=True)
class Retention:
    """Keeps the newest `last`, the `best` many by `monitor`, and steps that `every` divides.

    Raises ConfigError for numbers that would keep nothing or make no sense.
    """

    last: int = 2
    best: int = 0
    every: int | None = None
    monitor: str = "val_loss"
    mode: Mode = "min"

    def __post_init__(self) -> None:
        if self.last < 1 or self.best < 0 or (self.every is not None and self.every < 1):
            found = f"keep_last={self.last}, keep_best={self.best}, keep_every={self.every}"
            raise ConfigError(
                "these checkpoints can't be kept",
                found=found,
                wanted="keep_last of at least 1, keep_best of at least 0, keep_every None or at least 1",
            )
        if self.mode not in ("min", "max"):
            raise ConfigError("unknown mode", found=repr(self.mode), wanted="min or max")


@dataclass(frozen=True)
class Stored:
    """A committed checkpoint: its folder, step and metrics (those that are finite numbers)."""

    path: Path
    step: int
    metrics: dict[str, float] = field(default_factory=dict)


def list_stored(folder: Path) -> list[Stored]:
    """Return the committed checkpoints below `folder`, newest first; an unreadable manifest gives no metrics."""
    return [Stored(path, step_of(path) or 0, _metrics(path)) for path in list_folders(folder)]


def rank(stored: list[Stored], monitor: str, mode: Mode) -> list[Stored]:
    """Return those that have the metric, the best first; of equals the earlier one."""
    sign = 1 if mode == "min" else -1
    measured = [one for one in stored if monitor in one.metrics]
    return sorted(measured, key=lambda one: (sign * one.metrics[monitor], one.step))


def superseded(stored: list[Stored], rule: Retention) -> list[Stored]:
    """Return those of `stored` (newest first) that the rule lets go."""
    kept = {one.step for one in stored[: rule.last]}
    kept |= {one.step for one in rank(stored, rule.monitor, rule.mode)[: rule.best]}
    if rule.every is not None:
        kept |= {one.step for one in stored if one.step % rule.every == 0}
    return [one for one in stored if one.step not in kept]


def remove_superseded(folder: Path, rule: Retention) -> list[int]:
    """Remove what the rule lets go; return the steps. What can't be removed stays and is tried again next time."""
    removed = []
    stored = list_stored(folder) if rule.best else [Stored(path, step_of(path) or 0) for path in list_folders(folder)]
    for one in superseded(stored, rule):
        aside = one.path.with_name(f"{one.path.name}.tmp-{os.getpid()}")
        try:
            fault_point("checkpoint.remove")
            os.rename(one.path, aside)
        except OSError:
            continue
        shutil.rmtree(aside, ignore_errors=True)
        removed.append(one.step)
    return removed


def _metrics(path: Path) -> dict[str, float]:
    try:
        found = read_json(path / NAME).get("metrics")
    except CheckpointError:
        return {}
    numbers = found.items() if isinstance(found, dict) else ()
    return {name: float(value) for name, value in numbers if isinstance(value, int | float)}
