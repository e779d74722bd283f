"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to get out of step on resume.

Source of warm-up and cosine: Loshchilov & Hutter 2017, "SGDR", arXiv:1608.03983.
"""

from __future__ import annotations

import math
from typing import Literal

ScheduleName = Literal["cosine", "linear", "constant"]


def learning_rate(
    step: int, *, peak: float, total_steps: int, warmup_steps: int, schedule: ScheduleName, floor: float
) -> float:
    """Return the rate of step `step` (from 0): linear warm-up to `peak`, then down to `floor * peak` at the end."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    left = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
    return peak * (floor + (1 - floor) * left)
