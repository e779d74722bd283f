"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to get out of step on resume.

Only the rate moves: one_cycle leaves the momentum alone, unlike the paper's.
Sources: warm-up and cosine, Loshchilov & Hutter 2017, "SGDR", arXiv:1608.03983; wsd (warm-up, stable, decay), Hu et al.
2024, "MiniCPM", arXiv:2404.06395, its 1-sqrt decay Hägele et al. 2024, arXiv:2405.18392; one_cycle, Smith & Topin 2018,
"Super-Convergence", arXiv:1708.07120.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

ScheduleName = Literal["cosine", "linear", "constant", "wsd", "one_cycle"]
DecayShape = Literal["linear", "sqrt"]

ONE_CYCLE_START = 1 / 25
"""Where one_cycle begins, as a share of the peak."""


def learning_rate(
    step: int,
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int,
    schedule: ScheduleName,
    floor: float,
    decay_share: float = 0.2,
    decay_shape: DecayShape = "linear",
) -> float:
    """Return the rate of step `step` (from 0): up to `peak` in `warmup_steps` steps, then down to `floor * peak`.

    The warm-up is linear, in one_cycle a half cosine from a 25th of the peak. Then: cosine and linear fall all the way;
    constant stays; wsd stays and falls in the last `decay_share` of all steps, in a line or as one minus a square root
    (`decay_shape`: "linear", "sqrt"); one_cycle falls as a half cosine that reaches the floor at the last step.
    """
    if schedule == "one_cycle":
        return peak * _one_cycle(step, total_steps, warmup_steps, floor)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    begin = warmup_steps
    if schedule == "wsd":
        begin = max(warmup_steps, total_steps - math.ceil(decay_share * total_steps))
        if step < begin:
            return peak
    progress = min(1.0, (step - begin) / max(1, total_steps - begin))
    if schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        left = 1 - (math.sqrt(progress) if schedule == "wsd" and decay_shape == "sqrt" else progress)
    return peak * (floor + (1 - floor) * left)


def default_warmup_steps(schedule: ScheduleName, total_steps: int) -> int:
    """Return how many steps the warm-up takes where none is set.

    2% of all steps, at least 10 where there are 100; in one_cycle 30%.
    """
    if schedule == "one_cycle":
        return round(0.3 * total_steps)
    return min(max(total_steps // 50, 10), total_steps // 10)


def schedule_points(
    *, peak: float, total_steps: int, warmup_steps: int, schedule: ScheduleName, floor: float, points: int = 200
) -> list[tuple[int, float]]:
    """Return (step, rate) at up to `points` steps spread evenly from the first to the last: a curve to draw."""
    last = max(0, total_steps - 1)
    count = min(max(2, points), last + 1)
    steps = [round(index * last / max(1, count - 1)) for index in range(count)]
    rate = functools.partial(
        learning_rate, peak=peak, total_steps=total_steps, warmup_steps=warmup_steps, schedule=schedule, floor=floor
    )
    return [(step, rate(step)) for step in steps]


def _one_cycle(step: int, total_steps: int, warmup_steps: int, floor: float) -> float:
    """Return the share of the peak: a half cosine up to step `warmup_steps - 1`, another down to the last step."""
    top = max(0, warmup_steps - 1)
    if step < top:
        start, end, progress = ONE_CYCLE_START, 1.0, step / top
    else:
        start, end, progress = 1.0, floor, min(1.0, (step - top) / max(1, total_steps - 1 - top))
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
