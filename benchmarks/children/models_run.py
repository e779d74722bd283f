"""One case of `models`: both sides' forward pass, and forward and backward, timed in turns in one process.

`python -m benchmarks.children.models_run CASE MODE FOLDER RESULT`; MODE is eager or compiled. The sides are ours and
transformers' model (for mixtures of experts: a loop). FOLDER holds the weights that both read. Times are in
milliseconds. In processes of their own the same kernels differ by up to 15% from run to run, as each gets other pages
of memory; calls in turn share whatever the process got.
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

SECONDS, LEAST, MOST = 8.0, 5, 60
"""A measurement of both sides goes on for so long, with at least and at most so many turns."""
WARM_UP = 3

Pick = Callable[[Any], list[Tensor]]


class Side:
    """One side's model with its passes."""

    def __init__(self, model: nn.Module, mode: str, inputs: Inputs, pick: Pick) -> None:
        self.model, self.inputs, self.pick = model, inputs, pick
        self.called: Callable[..., Any] = torch.compile(model) if mode == "compiled" else model

    def forward(self) -> Tensor:
        """Return the norm of all outputs, without gradients."""
        with torch.no_grad():
            return _norm(self.pick(self.called(**self.inputs)))

    def forward_and_backward(self) -> None:
        """Leave new gradients."""
        self.model.zero_grad(set_to_none=True)
        parts = (leaf.square().mean() for leaf in self.pick(self.called(**self.inputs)))
        sum(parts, torch.zeros(())).backward()  # type: ignore[no-untyped-call]

    def gradient_norm(self) -> float:
        """Return the norm of all gradients."""
        return float(_norm([p.grad for p in self.model.parameters() if p.grad is not None]))


def sides(case: Case | MoECase, mode: str, folder: Path) -> list[Side]:
    """Return ours and theirs."""
    inputs = case.inputs()
    if isinstance(case, MoECase):
        return [Side(model, mode, inputs, lambda found: [found]) for model in (case.ours(), case.loop())]
    return [Side(model, mode, inputs, case.tensors) for model in (case.ours(folder), case.theirs(folder))]


def run(case: Case | MoECase, mode: str, folder: Path, seconds: float = SECONDS) -> dict[str, object]:
    """Time both passes of both sides; the value is the milliseconds of ours for forward and backward."""
    both = sides(case, mode, folder)
    for side in both:
        side.model.eval()
    output_norms = [float(side.forward()) for side in both]
    forward_ms = in_turns([side.forward for side in both], seconds)
    for side in both:
        side.model.train()
        side.forward_and_backward()
    gradient_norms = [side.gradient_norm() for side in both]
    train_ms = in_turns([side.forward_and_backward for side in both], seconds)
    forward, train = ([statistics.median(times) for times in found] for found in (forward_ms, train_ms))
    return {
        "value": train[0],
        "outputs": {
            "forward_ratio": forward[1] / forward[0],
            "train_ratio": train[1] / train[0],
            "output_gap": _gap(*output_norms),
            "gradient_gap": _gap(*gradient_norms),
            "peer_train_ms": train[1],
        },
        "details": {"forward_ms": forward_ms, "train_ms": train_ms},
    }


def in_turns(functions: list[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Return the milliseconds of each function's calls, A B A B, after a few that do not count."""
    for _ in range(WARM_UP):
        for function in functions:
            function()
    found: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while len(found[0]) < LEAST or (time.perf_counter() < end and len(found[0]) < MOST):
        for function, times in zip(functions, found, strict=True):
            start = time.perf_counter()
            function()
            times.append((time.perf_counter() - start) * 1e3)
    return found


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([tensor.detach().double().norm() for tensor in tensors]).norm()


def _gap(ours: float, theirs: float) -> float:
    return abs(ours - theirs) / max(abs(theirs), 1e-30)


def main(argv: list[str]) -> None:
    """Run `CASE MODE FOLDER RESULT`."""
    name, mode, folder, result = argv
    case = MOE_CASES[name] if name in MOE_CASES else CASES[name]
    Path(result).write_text(json.dumps(run(case, mode, Path(folder))))


if __name__ == "__main__":
    main(sys.argv[1:])
