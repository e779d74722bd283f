"""Short training runs held against each other: resumed or not, the same seed twice, and one batch learned by heart."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from deepseek.checkpoint.store import list_checkpoints
from deepseek.train.verifying.case import ShortRun, VerifyCase
from deepseek.train.verifying.report import Finding

_OVERFIT_STEPS = 20


def check_resume(case: VerifyCase) -> Finding:
    """Train n steps straight, and again from the checkpoint at n/2 with a new model and optimizer: equal to the bit."""
    half = case.steps // 2
    with tempfile.TemporaryDirectory(prefix="verify-") as name:
        folder = Path(name) / "run"
        settings: dict[str, Any] = {"output_dir": folder, "checkpoint_every": half, "keep_checkpoints": case.steps}
        straight = case.train(case.batches, case.steps, **settings)
        for path in list_checkpoints(folder / "checkpoints"):
            if int(path.name.rpartition("_")[2]) > half:
                shutil.rmtree(path)
        random.seed(12345)  # whatever the resumed run needs must come from the checkpoint
        torch.manual_seed(54321)
        resumed = case.train(case.batches, case.steps, resume=True, **settings)
    case.kept["straight"] = straight
    gap, where = _gap(straight, resumed, skip=half)
    told = f"{case.steps} steps against {half} + checkpoint + {case.steps - half}"
    if gap == 0:
        return Finding("resume", "pass", f"{told}: losses and weights equal to the bit", 0.0, 0.0)
    detail = (
        f"{told}: {where} differ\nthe model keeps something outside its state_dict: a counter, its own random "
        "numbers, a global"
    )
    return Finding("resume", "fail", detail, gap, 0.0)


def check_same_seed(case: VerifyCase) -> Finding:
    """Train twice from the same seed: equal to the bit."""
    first = case.kept.get("straight") or case.train(case.batches, case.steps)
    gap, where = _gap(first, case.train(case.batches, case.steps))
    if gap == 0:
        return Finding("same seed", "pass", f"two runs of {case.steps} steps are equal to the bit", 0.0, 0.0)
    why = "it draws random numbers that `seed` does not set, or remembers earlier runs"
    if case.device.type == "cuda":
        why += "; or a GPU kernel adds in any order (torch.use_deterministic_algorithms tells which)"
    return Finding("same seed", "fail", f"two runs from one seed: {where} differ\n{why}", gap, 0.0)


def check_overfit(case: VerifyCase) -> Finding:
    """Train on one batch alone at a constant rate: its loss must go down."""
    run = case.train(case.batches[:1], _OVERFIT_STEPS, schedule="constant", warmup_steps=0)
    if len(run.losses) < _OVERFIT_STEPS // 2:
        return Finding("overfit one batch", "fail", f"only {len(run.losses)} of {_OVERFIT_STEPS} steps had a loss")
    before, after = fmean(run.losses[:3]), fmean(run.losses[-3:])
    told = f"{before:.4g} to {after:.4g} in {_OVERFIT_STEPS} steps at rate {case.config.learning_rate:g}"
    if after < before:
        return Finding("overfit one batch", "pass", told)
    return Finding("overfit one batch", "fail", f"{told}\nthe rate is too high, or the gradient is wrong")


def _gap(first: ShortRun, second: ShortRun, skip: int = 0) -> tuple[float, str]:
    """Return the largest difference of losses (from step `skip` on) and of weights, and where it was."""
    worst, where = 0.0, ""
    for step, (a, b) in enumerate(zip(first.losses[skip:], second.losses, strict=True), start=skip + 1):
        if a != b and not worst >= abs(a - b):
            worst, where = abs(a - b), f"the losses, from step {step} on" if not where else where
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    for name, value in ours.items():
        if not torch.equal(value, theirs[name]):
            gap = float((value.double() - theirs[name].double()).abs().max())
            worst, where = max(worst, gap), where or f"the weights of {name}"
    return worst, where
