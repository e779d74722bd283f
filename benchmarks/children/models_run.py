"""One contestant of `models`: a model's forward pass, and forward and backward, timed in a process of its own.

`python -m benchmarks.children.models_run CASE MODE SIDE FOLDER RESULT`; MODE is eager or compiled, SIDE ours or theirs
(for mixtures of experts: ours or loop). FOLDER holds the weights that both sides read. Times are in milliseconds.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.model_cases import CASES, MOE_CASES, Case, Inputs, MoECase

SECONDS, LEAST, MOST = 4.0, 5, 60
"""A measurement goes on for so long, with at least and at most so many calls."""
WARM_UP = 3

Pick = Callable[[Any], list[Tensor]]


def contestant(case: Case | MoECase, side: str, folder: Path) -> tuple[nn.Module, Inputs, Pick]:
    """Return the side's model, the inputs, and what takes its tensors out of an answer."""
    if isinstance(case, MoECase):
        return (case.ours() if side == "ours" else case.loop()), case.inputs(), lambda found: [found]
    model = case.ours(folder) if side == "ours" else case.theirs(folder)
    return model, case.inputs(), case.tensors


def run(case: Case | MoECase, mode: str, side: str, folder: Path, seconds: float = SECONDS) -> dict[str, object]:
    """Time both passes; the value is the milliseconds of forward and backward."""
    model, inputs, pick = contestant(case, side, folder)
    called: Callable[..., Any] = torch.compile(model) if mode == "compiled" else model

    def forward() -> Tensor:
        with torch.no_grad():
            return _norm(pick(called(**inputs)))

    def forward_and_backward() -> Tensor:
        model.zero_grad(set_to_none=True)
        loss = sum((leaf.square().mean() for leaf in pick(called(**inputs))), torch.zeros(()))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    model.eval()
    output_norm = float(forward())
    forward_ms = timed(forward, seconds)
    model.train()
    forward_and_backward()
    gradient_norm = float(_norm([p.grad for p in model.parameters() if p.grad is not None]))
    train_ms = timed(forward_and_backward, seconds)
    return {
        "value": statistics.median(train_ms),
        "outputs": {
            "output_norm": output_norm,
            "gradient_norm": gradient_norm,
            "forward_ms": statistics.median(forward_ms),
            "train_ms": statistics.median(train_ms),
        },
        "details": {"forward_ms_by_call": forward_ms, "train_ms_by_call": train_ms},
    }


def timed(function: Callable[[], object], seconds: float) -> list[float]:
    """Return the milliseconds of each call, after a few that do not count."""
    for _ in range(WARM_UP):
        function()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < LEAST or (time.perf_counter() < end and len(found) < MOST):
        start = time.perf_counter()
        function()
        found.append((time.perf_counter() - start) * 1e3)
    return found


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([tensor.detach().double().norm() for tensor in tensors]).norm()


def main(argv: list[str]) -> None:
    """Run `CASE MODE SIDE FOLDER RESULT`."""
    name, mode, side, folder, result = argv
    case = MOE_CASES[name] if name in MOE_CASES else CASES[name]
    Path(result).write_text(json.dumps(run(case, mode, side, Path(folder))))


if __name__ == "__main__":
    main(sys.argv[1:])
