"""The compress stage of a run: one form, or the search for one, as the config says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepseek.compress.config import CompressConfig
from deepseek.compress.search.run import Progress, search_budget
from deepseek.compress.stage import Say, compress_bundle
from deepseek.tasks.task import Task


def compressed(
    bundle: Path,
    out: Path,
    batches: list[Any],
    config: CompressConfig,
    *,
    calibration_data: Sequence[Any] | None = None,
    train_data: Any = None,
    task: Task | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """Write the bundle in a smaller form to `out`, and return what was found as plain values.

    Raises as `compress_bundle` and `search_budget` do.
    """
    if config.budget() is None:
        return compress_bundle(
            bundle,
            out,
            batches,
            config=config,
            calibration_data=calibration_data,
            train_data=train_data,
            task=task,
            say=say,
        ).to_dict()

    def told(progress: Progress) -> None:
        if say is not None:
            say(_words(progress))

    return search_budget(
        bundle,
        out,
        batches,
        config=config,
        calibration_data=calibration_data,
        train_data=train_data,
        task=task,
        on_point=told,
    ).to_dict()


def _words(progress: Progress) -> str:
    best = f"; best so far: {progress.best['name']}" if progress.best is not None else ""
    return (
        f"{progress.rung}: {progress.candidate} ({progress.points} measured, {progress.seconds_left:.0f} s left{best})"
    )
