"""What a training run returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class TrainResult:
    """Numbers of a finished (or interrupted) run. Losses are means a target, in nats for language models."""

    steps: int
    """Optimizer steps done in all, those before a resume included."""
    items: int
    """Targets (tokens) trained on by this call."""
    seconds: float
    """Seconds of training in this call, without compiling, validation and saving."""
    losses: list[float] = field(default_factory=list)
    """Loss of each step of this call that had targets."""
    val_loss: float | None = None
    """Last validation loss."""
    metrics: dict[str, float] = field(default_factory=dict)
    """All numbers of the last validation: `val_loss`, and what the task measures (`val_accuracy`, ...)."""
    precision: str = "fp32"
    device: str = "cpu"
    compiled: bool = False
    compile_reason: str = ""
    compile_seconds: float = 0.0
    interrupted: bool = False
    """Stopped by Ctrl-C or SIGTERM; the run can be resumed."""
    signal: int | None = None
    """The signal that stopped it."""
    stop_reason: str | None = None
    """Why a callback ended the run before its plan: early stopping, a timer."""
    skipped_steps: int = 0
    """Steps whose gradient was not finite: no weight was changed."""
    rollbacks: int = 0
    """Times the run was set back to a checkpoint because the loss stayed NaN or infinite."""
    output_dir: Path | None = None
    memory_plan: str | None = None
    """With a memory budget: what was chosen to keep it, and what else was tried, as lines of text."""

    @property
    def items_per_second(self) -> float:
        """Targets (tokens) a second of training."""
        return self.items / self.seconds if self.seconds > 0 else 0.0
