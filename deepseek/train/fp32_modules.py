"""Which modules of a run compute in float32: those asked for, or those that a short calibration finds.

What was found is kept in the run's folder, so that a resumed run computes alike. Not here: the calibration itself
(`deepseek.optim.calibration`).
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from torch import nn

from deepseek.checkpoint.training_state import random_state, restore_random_state
from deepseek.files import write_json
from deepseek.optim.calibration import find_fp32_operators, sensitivity_table
from deepseek.optim.precision import Precision
from deepseek.tasks.task import Task, to_device
from deepseek.train.batches import BatchStream
from deepseek.train.config import TrainConfig

logger = logging.getLogger("deepseek.train")

FILE = "fp32_modules.json"


def fp32_modules(
    model: nn.Module, task: Task, data: BatchStream, precision: Precision, config: TrainConfig, folder: Path | None
) -> list[str]:
    """Return the paths of the modules to keep in float32. Random states are left as they were."""
    if config.fp32_modules != "auto":
        return list(config.fp32_modules)
    if precision.dtype is None:
        return []
    stored = None if folder is None else folder / FILE
    if stored is not None and stored.is_file():
        return [str(name) for name in json.loads(stored.read_text(encoding="utf-8"))]
    randomness = random_state()
    batch = to_device(next(data.iterate(0)), precision.device)
    found = find_fp32_operators(model, task, [batch], precision)
    restore_random_state(randomness)
    names = [operator.name for operator in found]
    if found:
        logger.warning("kept in float32, for what %s does to them:\n%s", precision.name, sensitivity_table(found))
    if stored is not None:
        write_json(stored, names)
    return names
