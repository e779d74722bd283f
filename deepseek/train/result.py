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
    precision: str = "fp32"
    device: str = "cpu"
    compiled: bool = False
    compile_reason: str = ""
    compile_seconds: float = 0.0
    interrupted: bool = False
    """Stopped by Ctrl-C or SIGTERM; the run can be resumed."""
    skipped_steps: int = 0
    """Steps whose gradient was not finite: no weight was changed."""
    output_dir: Path | None = None

    @property
    def items_per_second(self) -> float:
        """Targets (tokens) a second of training."""
        return self.items / self.seconds if self.seconds > 0 else 0.0
