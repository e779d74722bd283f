"""Rounding to integers that can be learned through: the value of a step, and the gradient of what the step should be.

Not here: where steps begin (`initial.py`) and the layers that use them (`layers.py`).
Sources: the gradient of the step, Esser et al. 2020, "Learned Step Size Quantization", arXiv:1902.08153; of the zero
point, Bhalgat et al. 2020, "LSQ+", arXiv:2004.09576.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def fake_quantize(
    x: Tensor, step: Tensor, zero_point: Tensor | None, levels: tuple[int, int], step_gradient: float = 1.0
) -> Tensor:
    """Return `(clip(round(x / step) + zero, *levels) - zero) * step` in the dtype of `x`; zero is `round(zero_point)`.

    `step` is float32: a scalar, or (rows,) with one for each index of the first dimension of `x`. `zero_point` is a
    float32 scalar; None is 0. The arithmetic is float32, the same as that of the int8 layers. Gradients, with
    v = x / step: to x where v lies inside the levels; to the step `round(v) - v` inside and the level reached outside,
    times `step_gradient`; to the zero point `-step` outside, times `step_gradient`.
    """
    quantized: Tensor = _FakeQuantize.apply(x, step, zero_point, levels, step_gradient)  # type: ignore[no-untyped-call]
    return quantized


def to_levels(x: Tensor, step: Tensor, zero_point: Tensor | None, levels: tuple[int, int]) -> Tensor:
    """Return the whole numbers, as float32, that `fake_quantize` rounds to; the zero point is part of them."""
    rounded = (x.float() / _along_rows(step, x)).round_()
    if zero_point is not None:
        rounded.add_(zero_point)
    return rounded.clamp_(*levels)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, zero_point: Tensor | None, levels: tuple[int, int], step_gradient: float
    ) -> Tensor:
        if zero_point is not None:
            zero_point = zero_point.round()
        ctx.save_for_backward(x, step, zero_point)
        ctx.levels, ctx.step_gradient = levels, step_gradient
        quantized = to_levels(x, step, zero_point, levels)
        if zero_point is not None:
            quantized.sub_(zero_point)
        return quantized.mul_(_along_rows(step, x)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, step, zero_point = ctx.saved_tensors
        shift: Tensor | float = 0.0 if zero_point is None else zero_point
        low, high = (level - shift for level in ctx.levels)
        gradient, exact = grad_outputs[0].float(), x.float() / _along_rows(step, x)
        inside = (exact > low) & (exact < high)
        to_x = torch.where(inside, gradient, 0.0).to(x.dtype) if ctx.needs_input_grad[0] else None
        to_step = to_zero = None
        if ctx.needs_input_grad[1]:
            reached = torch.clamp(exact.round(), low, high)
            slope = torch.where(inside, reached - exact, reached)
            to_step = _sum_like(gradient * slope, step) * ctx.step_gradient
        if ctx.needs_input_grad[2]:
            to_zero = -(torch.where(inside, 0.0, gradient) * _along_rows(step, x)).sum() * ctx.step_gradient
        return to_x, to_step, to_zero, None, None


def _along_rows(step: Tensor, x: Tensor) -> Tensor:
    return step if step.dim() == 0 else step.reshape(-1, *(1,) * (x.dim() - 1))


def _sum_like(gradient: Tensor, step: Tensor) -> Tensor:
    return gradient.sum() if step.dim() == 0 else gradient.flatten(1).sum(dim=1)
