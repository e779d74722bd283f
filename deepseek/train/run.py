"""What the loop works on: a step, data, settings, what is done besides. Not here: where it stands (`run_state.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepseek.train.batches import BatchStream
from deepseek.train.callbacks.callback import Callback
from deepseek.train.config import TrainConfig
from deepseek.train.step import TrainStep
from deepseek.train.step_source import StepSource


@dataclass
class TrainingRun:
    """What the loop works on."""

    step: TrainStep
    data: BatchStream
    steps: StepSource
    config: TrainConfig
    validate: Callable[[], dict[str, float]] | None = None
    output_dir: Path | None = None
    resume: bool = False
    unit: str = "items"
    callbacks: Sequence[Callback] = field(default_factory=list)
