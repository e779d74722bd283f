"""What a run takes as it is set, and what it would take with other recompute and micro-batches: `deepseek estimate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deepseek.optim.precision import Precision
from deepseek.tasks.task import Task
from deepseek.train.config import TrainConfig
from deepseek.train.memory.estimate import MemoryEstimate, estimate_training, free_memory
from deepseek.train.memory.plan import MemoryPlan, plan_memory
from deepseek.train.memory.recovery import rows_of, split_batch

_POLICIES = ("none", "selective", "full")


@dataclass(frozen=True)
class Survey:
    """Bytes of a run, by part, and the peaks of its alternatives by (recompute, rows of a micro-batch)."""

    device: str
    precision: str
    rows: int
    free: int | None
    estimate: MemoryEstimate
    peaks: dict[tuple[str, int], int]
    plan: MemoryPlan | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        alternatives = [
            {"recompute": policy, "micro_batch": rows, "peak": peak} for (policy, rows), peak in self.peaks.items()
        ]
        return {
            "device": self.device,
            "precision": self.precision,
            "micro_batch": self.rows,
            "free": self.free,
            **self.estimate._asdict(),
            "peak": self.estimate.total,
            "alternatives": alternatives,
        }


def survey(build: Callable[[], nn.Module], task: Task, batch: Any, config: TrainConfig, device: torch.device) -> Survey:
    """Reckon the run as `config` has it on batches like `batch`, and recompute x micro-batch (whole, half, quarter).

    With `config.memory_budget` the plan is made, too. Raises as `estimate_training` and `plan_memory` do.
    """
    precision = Precision(config.precision, device)
    with torch.device("meta"):
        model = build()
    plan = None if config.memory_budget is None else plan_memory(lambda: model, task, batch, config, device)
    estimate = estimate_training(lambda: model, task, batch, config, precision)
    rows, peaks = rows_of(batch), dict[tuple[str, int], int]()
    for parts in [parts for parts in (1, 2, 4) if parts <= rows]:
        part = max(split_batch(batch, parts), key=rows_of) if parts > 1 else batch
        accumulation = config.gradient_accumulation_steps * parts
        for policy in _POLICIES:
            settings = config.replace(recompute=policy, gradient_accumulation_steps=accumulation)
            peaks[policy, rows_of(part)] = estimate_training(lambda: model, task, part, settings, precision).total
    return Survey(str(device), precision.name, rows, free_memory(device), estimate, peaks, plan)
