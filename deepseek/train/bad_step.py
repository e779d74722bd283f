"""What is said of a step that stayed bad: the operator that made the first NaN, and the step stored for a replay.

Not here: how the operator is found (`first_bad.py`).
"""

from __future__ import annotations

import logging
from pathlib import Path

from deepseek.errors import DeepSeekError, NonFiniteLossError
from deepseek.train.first_bad import find_first_bad, save_bad_step
from deepseek.train.step import TrainStep

logger = logging.getLogger("deepseek.train")


def explain_bad_step(
    step: TrainStep, error: NonFiniteLossError, folder: Path | None, number: int
) -> NonFiniteLossError:
    """Return `error` with the culprit named; with `folder`, store the step in `folder/bad_step`.

    `number` is the step's. What goes wrong in here is logged: the first error matters more.
    """
    random = step.latest_random
    if random is None:
        return error
    scale = step.scaler.get_scale() if step.scaler is not None else 1.0
    try:
        bad = find_first_bad(
            step.model,
            step.task,
            step.latest,
            step.precision,
            random,
            optimizer=step.optimizer,
            clip=step.clipper,
            loss_scale=scale,
        )
        stored = ""
        if folder is not None:
            path = save_bad_step(
                folder, step.model, step.latest, random, bad, step=number, precision=step.precision, loss_scale=scale
            )
            stored = f"; the step is stored in {path}"
    except (DeepSeekError, RuntimeError) as problem:
        logger.warning("the operator that made the first NaN could not be found: %s", problem)
        return error
    return NonFiniteLossError(error.problem, found=f"{error.found}\n{bad}", fix=f"{error.fix}{stored}")
