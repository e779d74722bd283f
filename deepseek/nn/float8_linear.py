"""A linear layer whose three matrix products run in float8, with one scale a tensor taken anew in every step.

Weights and activations go to e4m3 (448 at most, 3 bits of fraction), gradients to e5m2 (57344, 2 bits): the largest
number of a tensor is mapped to the largest of the format. The products add up in float32 and leave in bfloat16. The
parameters stay what they are, float32 or bfloat16.
Sources: Micikevicius et al. 2022, "FP8 Formats for Deep Learning", arXiv:2209.05433; operator, `torch._scaled_mm`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SIZES_DIVIDE = 16
"""Both sizes of every operand have to be multiples of this; `torch._scaled_mm` demands it."""


class Float8Linear(nn.Linear):
    """nn.Linear with float8 matrix products: (..., in_features) -> (..., out_features) in bfloat16.

    Where the number of rows is no multiple of 16 the layer computes in bfloat16. Made by `from_linear`, which shares
    the parameters.
    """

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Float8Linear:
        """Return a float8 layer that holds the parameters of `linear`, which has to have fitting sizes."""
        made = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        made.weight, made.bias = linear.weight, linear.bias
        return made.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x @ weight.T + bias`."""
        rows, bias = x.reshape(-1, self.in_features), None if self.bias is None else self.bias.bfloat16()
        if rows.shape[0] % SIZES_DIVIDE or rows.shape[0] == 0:
            with torch.autocast(x.device.type, enabled=False):
                return nn.functional.linear(x.bfloat16(), self.weight.bfloat16(), bias)
        out: Tensor = _Float8Product.apply(rows, self.weight)  # type: ignore[no-untyped-call]
        out = out.view(*x.shape[:-1], self.out_features)
        return out if bias is None else out + bias


class _Float8Product(torch.autograd.Function):
    """`x @ weight.T`: x (rows, in), weight (out, in) -> (rows, out) bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x8, x_scale = to_float8(x, torch.float8_e4m3fn)
        w8, w_scale = to_float8(weight, torch.float8_e4m3fn)
        ctx.save_for_backward(x8, x_scale, w8, w_scale)
        ctx.dtypes = x.dtype, weight.dtype
        return _product(x8, w8.t(), x_scale, w_scale, fast=True)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x8, x_scale, w8, w_scale = ctx.saved_tensors
        g8, g_scale = to_float8(grad_outputs[0], torch.float8_e5m2)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _product(g8, _column_major(w8), g_scale, w_scale).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            grad_weight = _product(g8.t().contiguous(), _column_major(x8), g_scale, x_scale).to(ctx.dtypes[1])
        return grad_x, grad_weight


def to_float8(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return `tensor` in float8, and the float32 scalar by which it gives `tensor` back, but for rounding."""
    largest = torch.finfo(dtype).max
    scale = tensor.detach().abs().amax().float().clamp_min(1e-12) / largest
    return (tensor.float() / scale).clamp(-largest, largest).to(dtype).contiguous(), scale


def _product(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, *, fast: bool = False) -> Tensor:
    """Return `a @ b` in bfloat16; a (n, k) by rows, b (k, m) by columns in memory. `fast` adds up in fewer bits."""
    return torch._scaled_mm(
        a, b, scale_a=a_scale, scale_b=b_scale, out_dtype=torch.bfloat16, use_fast_accum=fast and a.is_cuda
    )


def _column_major(matrix: Tensor) -> Tensor:
    return matrix.t().contiguous().t()
