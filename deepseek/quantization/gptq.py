"""GPTQ: weights rounded one input at a time, the error of each made up for by those not rounded yet.

Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv:2210.17323 (algorithm 1; groups and act-order as in section 5 and the authors' code). Not here: where the inputs
come from (`calibrate.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepseek.nn.int4_weights import choose_scales, dequantize_levels, round_to_levels

DAMPING = 0.01
"""Added to the Hessian's diagonal, as a part of its mean: keeps inputs that never vary apart from a singular matrix."""
BLOCK = 128
"""Inputs whose corrections are applied to the rest of the row at once: the same numbers, in fewer passes."""


def gptq_levels(
    weight: Tensor,
    inputs: Tensor,
    group_size: int | None,
    symmetric: bool,
    act_order: bool = False,
    damping: float = DAMPING,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return (levels uint8 `(rows, width)`, scale, zero point) for `weight` `(rows, width)`.

    `inputs` fp32 `(samples, width)` are what the layer sees. Scales are those of round-to-nearest, of the whole row at
    the start or of a group when its first input is reached. `act_order` rounds the inputs of the largest second moment
    first; then all scales are chosen at the start, so that a group stays a run of neighbours.
    """
    values, moments = weight.detach().to(torch.float64), second_moments(inputs)
    order = moments.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(weight.shape[1])
    scale, zero_point = choose_scales(weight, group_size, symmetric)
    values[:, moments.diagonal() == 0] = 0  # never multiplied by anything: free to be the exact zero
    factor = inverse_factor(moments[order][:, order], damping)
    values = values[:, order]
    levels = torch.zeros(weight.shape, dtype=torch.uint8)
    width, size = weight.shape[1], group_size or weight.shape[1]
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        errors = torch.zeros(len(values), stop - start, dtype=torch.float64)
        for position in range(start, stop):
            column = int(order[position])
            group = column // size
            if group_size is not None and not act_order and position % size == 0:
                ahead = values[:, position : position + size] - _pending(errors, factor, start, position, size)
                fresh, shift = choose_scales(ahead, None, symmetric)
                scale[:, group] = fresh[:, 0]
                if zero_point is not None and shift is not None:
                    zero_point[:, group] = shift[:, 0]
            own_scale, own_shift = scale[:, [group]], None if zero_point is None else zero_point[:, [group]]
            rounded = round_to_levels(values[:, [position]], own_scale, own_shift, None)
            levels[:, column] = rounded[:, 0]
            lost = values[:, position] - dequantize_levels(rounded, own_scale, own_shift, None)[:, 0].to(torch.float64)
            errors[:, position - start] = lost / factor[position, position]
            correction = errors[:, position - start, None] * factor[None, position, position + 1 : stop]
            values[:, position + 1 : stop] -= correction
        values[:, stop:] -= errors @ factor[start:stop, stop:]
    return levels, scale, zero_point


def second_moments(inputs: Tensor) -> Tensor:
    """Return the mean of x x^T over the rows of `inputs`, fp64 `(width, width)`: the Hessian of the squared error."""
    rows = inputs.detach().to(torch.float64)
    return rows.t() @ rows / max(1, len(rows))


def inverse_factor(moments: Tensor, damping: float = DAMPING) -> Tensor:
    """Return the upper triangular Cholesky factor of the inverse of the damped `moments`, fp64."""
    damped = moments.clone()
    diagonal = damped.diagonal()
    diagonal += damping * diagonal.mean().clamp_min(1e-12)
    diagonal[moments.diagonal() == 0] += 1  # an input that is always zero
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _pending(errors: Tensor, factor: Tensor, start: int, position: int, size: int) -> Tensor:
    """Return what this block's errors will take from a group that reaches beyond the block, zero inside it."""
    stop, end = start + errors.shape[1], min(position + size, factor.shape[0])
    late = errors @ factor[start:stop, max(stop, position) : end]
    return torch.nn.functional.pad(late, (end - position - late.shape[1], 0))
