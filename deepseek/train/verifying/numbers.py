"""The same training in other arithmetic: the recipe's number format against float32, compiled against eager."""

from __future__ import annotations

import shutil
import time
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deepseek.nn import choices
from deepseek.optim.calibration import find_fp32_operators
from deepseek.optim.precision import Precision
from deepseek.tasks.task import Task, to_device
from deepseek.train.verifying.case import VerifyCase, relative_difference, without_dropout
from deepseek.train.verifying.report import Finding

LIMIT_PRECISION = 0.02
"""Of the loss, over the first steps; bfloat16 has 8 bits of precision, so a relative 0.004 in one number."""
LIMIT_COMPILED = 1e-3
"""Of the gradient in float32: the compiler adds in another order and fuses."""


def check_precision(case: VerifyCase) -> Finding:
    """Train some steps in float32 and in the recipe's number format; name the layers that differ most."""
    precision = Precision(case.config.precision, case.device)
    if precision.dtype is None:
        return Finding("precision", "skipped", f"the recipe trains in {precision.name} on this machine")
    exact = case.train(case.batches, case.steps, mode="without dropout", precision="fp32", weights_dtype="fp32").losses
    rounded = case.train(case.batches, case.steps, mode="without dropout").losses
    if len(exact) != len(rounded):
        found = f"{len(exact)} losses in fp32, {len(rounded)} in {precision.name}"
        return Finding("precision", "fail", found)
    gap = max(abs(a - b) / max(abs(a), 1e-30) for a, b in zip(exact, rounded, strict=True))
    drift = ", ".join(f"{name} {share:.1%}" for name, share in layer_drift(case, precision)[:3])
    detail = f"losses of {case.steps} steps, {precision.name} against fp32\nmost of all: {drift}"
    batch = to_device(case.batches[0], case.device)
    sensitive = find_fp32_operators(case.fresh().to(case.device), case.task, [batch], precision)
    if sensitive:
        detail += "\nneeds float32: " + ", ".join(f"{found.name} ({found.reason})" for found in sensitive[:5])
    return Finding("precision", "pass" if gap <= LIMIT_PRECISION else "fail", detail, gap, LIMIT_PRECISION)


def layer_drift(case: VerifyCase, precision: Precision) -> list[tuple[str, float]]:
    """Return each layer's relative error in its output, against float32 on the same batch, the largest first."""
    model, batch = case.fresh().to(case.device).train(), to_device(case.batches[0], case.device)
    exact = _layer_outputs(model, case.task, batch, Precision("fp32", case.device))
    rounded = _layer_outputs(model, case.task, batch, precision)
    drift = []
    for name, output in exact.items():
        other = rounded.get(name)
        if other is not None and other.shape == output.shape and output.numel():
            gap = float((output.double() - other.double()).norm() / output.double().norm().clamp_min(1e-30))
            drift.append((name, gap))
    return sorted(drift, key=lambda pair: -pair[1])


def _layer_outputs(model: nn.Module, task: Task, batch: Any, precision: Precision) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if not any(True for _ in module.children()):

            def keep(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor) and output.is_floating_point():
                    outputs.setdefault(name, output.detach().to(torch.float32, copy=True))

            handles.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad(), without_dropout(), precision.autocast():
            torch.manual_seed(0)
            task.loss_sum(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


class _Pass(NamedTuple):
    loss: float
    gradient: dict[str, Tensor]


def check_compiled(case: VerifyCase, backend: str = "inductor", seconds_left: float = float("inf")) -> Finding:
    """Compare loss and gradient of one batch, compiled and eager, in float32; count the graph breaks."""
    name = "compiled"
    if case.config.compile is False:
        return Finding(name, "skipped", "the recipe says compile: false")
    if backend == "inductor" and case.device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return Finding(name, "skipped", "no C++ compiler found (install g++)")
    expected = 10 + 0.5 * sum(1 for _ in case.model.modules())
    if backend == "inductor" and expected > seconds_left:
        return Finding(name, "skipped", f"compiling would take about {expected:.0f} s; raise the time limit")
    eager = _pass(case, None)
    start = time.monotonic()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    try:
        # So the dropout of compiled code is that of eager code; the compiler's advice is not ours.
        same_dropout = torch._inductor.config.patch(fallback_random=True), choices.using({"dropout": "torch"})
        with same_dropout[0], same_dropout[1], warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = _pass(case, backend)
    except Exception as error:  # a compiler may fail in any way: that is a finding
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return Finding(name, "warning", f"torch.compile fails, training will run eagerly: {first[:160]}")
    finally:
        breaks = dict(torch._dynamo.utils.counters["graph_break"])
        torch._dynamo.reset()
    gap, where = relative_difference(eager.gradient, compiled.gradient)
    loss_gap = abs(eager.loss - compiled.loss) / max(abs(eager.loss), 1e-30)
    worst = max(gap, loss_gap)
    told = f"loss {loss_gap:.1g}, gradient {gap:.1g}; {_told(breaks)}; {time.monotonic() - start:.0f} s to compile"
    if worst <= LIMIT_COMPILED:
        return Finding(name, "pass", told, worst, LIMIT_COMPILED)
    return Finding(name, "fail", f"{told}\nthe compiled model computes something else (most at {where})", worst, 1e-3)


def _pass(case: VerifyCase, backend: str | None) -> _Pass:
    """Return loss and gradient of the first batch."""
    model = case.fresh().to(case.device).train()
    batch = to_device(case.batches[0], case.device)
    loss_sum: Any = case.task.loss_sum
    if backend is not None:
        loss_sum = torch.compile(loss_sum, backend=backend, dynamic=False)
    torch.manual_seed(0)
    loss = loss_sum(model, batch)
    (loss / max(1, case.task.count(batch))).backward()
    gradient = {name: p.grad.detach().cpu() for name, p in model.named_parameters() if p.grad is not None}
    return _Pass(float(loss.detach()), gradient)


def _told(breaks: dict[str, int]) -> str:
    if not breaks:
        return "no graph break"
    reasons = "; ".join(f"{(reason.splitlines() or ['?'])[0][:80]}" for reason in list(breaks)[:3])
    return f"{sum(breaks.values())} graph breaks ({reasons})"
