"""Where a run stands: what callbacks see of it, and what they may ask of it.

Not here: how it goes on (`loop.py`) and what a checkpoint holds (`saving.py`).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from deepseek.tasks.task import Task
from deepseek.train.batches import BatchStream
from deepseek.train.config import TrainConfig
from deepseek.train.metrics_log import MetricsLog

logger = logging.getLogger("deepseek.train")


@dataclass
class RunState:
    """A run at this moment; counts are over the whole run, those before a resume included."""

    model: nn.Module
    task: Task
    optimizer: Optimizer
    config: TrainConfig
    data: BatchStream
    output_dir: Path | None = None
    total_steps: int = 0
    """Planned steps; a time budget may change them."""
    step: int = 0
    """Optimizer steps done."""
    position: int = 0
    """Micro-batches taken from the data."""
    items: int = 0
    """Targets (tokens, samples) trained on."""
    seconds: float = 0.0
    """Seconds of training, without compiling, validation and saving; by a clock that never jumps."""
    loss: float = math.nan
    """Mean loss of the latest step."""
    grad_norm: float = math.nan
    """Norm of its gradient before clipping."""
    learning_rate: float = 0.0
    """Its learning rate, of the first parameter group."""
    skipped: bool = False
    """Whether it changed no weight."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The numbers of the newest validation: `val_loss`, and what the task measures."""
    stop_reason: str | None = None
    wanted_checkpoints: list[Path | None] = field(default_factory=list)
    """Asked for at the end of this step: None is one of the run's own, a path a folder that stays."""
    metrics_log: MetricsLog | None = None

    @property
    def epoch(self) -> float:
        """Passes over the data done, as a fraction."""
        return self.position / max(1, len(self.data))

    def stop(self, reason: str) -> None:
        """End the run after this step as if its plan were done: saved, and with a bundle. The first reason stays."""
        if self.stop_reason is None:
            self.stop_reason = reason
            logger.info("stopping after step %d: %s", self.step, reason)

    def log(self, values: dict[str, float]) -> None:
        """Write numbers as of this step to metrics.jsonl and TensorBoard, where the run has a folder."""
        if self.metrics_log is not None:
            self.metrics_log.log(values, self.step)

    def request_checkpoint(self, path: Path | None = None) -> None:
        """Ask for a full checkpoint at the end of this step; with `path` as that folder, which no retention removes."""
        self.wanted_checkpoints.append(path)

    def weights(self) -> dict[str, Tensor]:
        """Return the model's `state_dict`: the very tensors, not copies."""
        return self.model.state_dict()
