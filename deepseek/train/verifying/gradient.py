"""Is the gradient the derivative of the loss? Central differences along random directions tell.

Computed in float64: weights, inputs, and what the model itself would cast to float32. Where a layer takes no float64
the check is made in float32, coarser. Parameters without gradient, and frozen ones, are named.
Source: Nocedal and Wright 2006, "Numerical Optimization", section 8.1 (central differences).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from deepseek.tasks.task import to_device
from deepseek.train.verifying.case import VerifyCase
from deepseek.train.verifying.report import Finding

NAME = "gradient"
LIMIT, LIMIT_FLOAT32 = 1e-5, 1e-2
_DIRECTIONS = 3
_STEPS = (1e-4, 1e-6, 1e-7, 1e-8)
"""As shares of a parameter's norm; the short ones cross fewer of the kinks that ReLU and maximum have."""
_STEPS_FLOAT32 = (1e-1, 3e-2, 1e-2, 3e-3)

Named = list[tuple[str, Tensor]]


class _Derivative:
    """A loss as a function of the weights, and its gradient by autograd."""

    def __init__(self, case: VerifyCase, dtype: torch.dtype) -> None:
        self.case, self.dtype = case, dtype
        self.steps = _STEPS if dtype == torch.float64 else _STEPS_FLOAT32
        self.model = case.fresh().to(case.device).train().to(dtype)
        self.batch = _floats_to(to_device(case.batches[0], case.device), dtype)
        with self._mode():
            self._loss().backward()  # type: ignore[no-untyped-call]
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self.named: Named = [(name, p) for name, p in trained if p.grad is not None]
        self.without = [name for name, p in trained if p.grad is None]
        self.frozen = [name for name, p in self.model.named_parameters() if not p.requires_grad]
        self.gradient = {name: p.grad.double().cpu() for name, p in self.named if p.grad is not None}
        self.norms = {name: float(p.detach().double().norm()) + 1e-2 for name, p in trained}
        weighed = sorted(float(slope.norm()) * self.norms[name] for name, slope in self.gradient.items())
        self._share = weighed[len(weighed) // 2] if weighed else 0.0

    def _mode(self) -> Any:
        return _InFloat64() if self.dtype == torch.float64 else contextlib.nullcontext()

    def _loss(self) -> Tensor:
        return self.case.loss_sum(self.model, self.batch)

    @torch.no_grad()
    def value(self) -> float:
        """Return the loss at the present weights."""
        with self._mode():
            return float(self._loss())

    @torch.no_grad()
    def along(self, direction: dict[str, Tensor], length: float) -> float:
        """Return the central difference of the loss along a direction."""
        weights = dict(self.model.named_parameters())
        kept = {name: weights[name].clone() for name in direction}
        values = []
        for sign in (1, -1):
            for name, step in direction.items():
                weights[name].copy_(kept[name] + sign * length * step)
            values.append(self.value())
        for name, before in kept.items():
            weights[name].copy_(before)
        return (values[0] - values[1]) / (2 * length)

    def error(self, names: Sequence[str], seed: int) -> float:
        """Return how far autograd is from the difference along a random direction in these parameters, relatively.

        A parameter moves by a share of its norm, but by no more than changes the loss as much as the median one does:
        so an error in any of them shows.
        """
        generator = torch.Generator().manual_seed(seed)
        weights, direction, expected, size = dict(self.model.named_parameters()), {}, 0.0, 0.0
        for name in names:
            noise = torch.randn(weights[name].shape, generator=generator, dtype=torch.float64)
            slope = self.gradient.get(name, torch.zeros_like(noise))
            steep = float(slope.norm())
            step = noise / noise.norm().clamp_min(1e-30)
            if steep:
                step += slope / steep  # random alone hardly ever meets a steep slope
            step *= min(self.norms[name], self._share / steep) if steep and self._share else self.norms[name]
            direction[name] = step.to(weights[name])
            part = float((slope * step).sum())
            expected, size = expected + part, size + abs(part)
        found = [self.along(direction, length) for length in self.steps]
        scale = max(size, max(map(abs, found)), 1e-12)
        return min(abs(value - expected) for value in found) / scale


def check_gradient(case: VerifyCase) -> Finding:
    """Hold autograd against central differences; name the parameter where they part."""
    derivative, note = _derivative(case)
    names = [name for name, _ in derivative.named]
    if not names:
        return Finding(NAME, "fail", "no parameter has a gradient" + _others(derivative))
    limit = LIMIT if derivative.dtype == torch.float64 else LIMIT_FLOAT32
    if derivative.value() != derivative.value():
        return Finding(NAME, "fail", "the same loss twice differs: it can't be held against anything", None, limit)
    worst = max(derivative.error(names, seed) for seed in range(_DIRECTIONS))
    moved = [name for name in derivative.without[:20] if derivative.error([name], 0) > limit]
    if moved:
        detail = f"the loss depends on {', '.join(moved[:5])}, which got no gradient{_others(derivative)}{note}"
        return Finding(NAME, "fail", detail, worst, limit)
    if worst <= limit:
        told = f"{_DIRECTIONS} random directions in {len(names)} parameters{_others(derivative)}{note}"
        return Finding(NAME, "warning" if derivative.without else "pass", told, worst, limit)
    culprit = _narrow(derivative, names, limit)
    return Finding(
        NAME, "fail", f"autograd is not the derivative of the loss: {culprit}{_others(derivative)}{note}", worst, limit
    )


def _derivative(case: VerifyCase) -> tuple[_Derivative, str]:
    try:
        if case.device.type != "mps":
            return _Derivative(case, torch.float64), ""
        reason = "the device has no float64"
    except (RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
    return _Derivative(case, torch.float32), f"\nin float32, coarser: float64 does not work here ({reason})"


def _narrow(derivative: _Derivative, names: list[str], limit: float) -> str:
    """Return the parameter where difference and autograd part, by halving; or several, if only together they do."""
    while len(names) > 1:
        half = len(names) // 2
        parts = [
            (max(derivative.error(part, seed) for seed in range(2)), part) for part in (names[:half], names[half:])
        ]
        error, part = max(parts, key=lambda pair: pair[0])
        if error <= limit:
            return f"somewhere in {names[0]} .. {names[-1]}"
        names = part
    return names[0]


def _others(derivative: _Derivative) -> str:
    """Return lines about the parameters that are not trained."""
    lines = ""
    for what, names in (("without gradient", derivative.without), ("frozen", derivative.frozen)):
        if names:
            lines += f"\n{what}: {', '.join(names[:6])}" + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return lines


class _InFloat64(TorchFunctionMode):
    """A context in which what would be float32 is float64: `.float()`, `.to(torch.float32)`, `dtype=torch.float32`."""

    def __enter__(self) -> Any:
        """Take float64 for new tensors too."""
        self._before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        """Go back to what was before."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.set_default_dtype(self._before)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func` with float64 in place of float32."""
        if func is Tensor.float:
            func = Tensor.double
        args = tuple(_wide(value) for value in args)
        return func(*args, **{name: _wide(value) for name, value in (kwargs or {}).items()})


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _floats_to(batch: Any, dtype: torch.dtype) -> Any:
    """Return the batch with its floating point tensors in `dtype`."""
    if isinstance(batch, Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return {key: _floats_to(value, dtype) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(_floats_to(value, dtype) for value in batch)
    return batch
