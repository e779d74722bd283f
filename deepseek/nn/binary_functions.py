"""Signs, their scales and their straight-through gradients: the floating-point meaning of binary and ternary layers.

Sources: signs and scales: XNOR-Net, arXiv:1603.05279; gradients: Hubara et al. 2016, "Binarized Neural Networks",
arXiv:1602.02830. The sign of zero is +1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.nn.conv_shape import ConvShape
from deepseek.nn.ternary_weights import ternary_rows


def sign(x: Tensor) -> Tensor:
    """Return -1 where `x` is negative or not a number, else 1; the gradient is that of a clip to [-1, 1]."""
    if torch.is_grad_enabled() and x.requires_grad:
        passed: Tensor = _ClippedSign.apply(x)  # type: ignore[no-untyped-call]  # torch's
        return passed
    return _sign(x)


def ternarize(weight: Tensor) -> Tensor:
    """Return the ternary form `(rows, ...)` of a float weight, scaled for each row; the gradient passes unchanged."""
    if torch.is_grad_enabled() and weight.requires_grad:
        passed: Tensor = _Ternary.apply(weight)  # type: ignore[no-untyped-call]  # torch's
        return passed
    return _ternary(weight)


def binary_scale(weight: Tensor) -> Tensor:
    """Return the mean magnitude of each row's weights `(rows,)`: the best scale for its signs (equation 6)."""
    return weight.flatten(1).abs().mean(dim=1)


def mean_magnitude(x: Tensor, dim: int) -> Tensor:
    """Return the mean of |x| over `dim`, kept with size 1; summed in fp64, so that any order gives one result."""
    total: Tensor = torch.linalg.vector_norm(x, ord=1, dim=dim, keepdim=True, dtype=torch.float64)
    return (total / x.shape[dim]).to(x.dtype)


def window_scale(magnitude: Tensor, shape: ConvShape) -> Tensor:
    """Return the mean magnitude of the input under each output pixel: `(batch, 1, out_height, out_width)`.

    `magnitude` is each pixel's, `(batch, 1, height, width)`; padding counts as zeros (the K of equation 11).
    """
    rows, columns = shape.kernel_size
    if (rows, columns, *shape.stride, *shape.padding) == (1, 1, 1, 1, 0, 0):
        return magnitude
    window = torch.full((1, 1, rows, columns), 1 / (rows * columns), dtype=magnitude.dtype, device=magnitude.device)
    return F.conv2d(magnitude, window, None, shape.stride, shape.padding, shape.dilation)


class _ClippedSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _sign(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        inside: Tensor = x.abs() <= 1
        return grads[0] * inside


class _Ternary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight: Tensor) -> Tensor:
        return _ternary(weight)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        return grads[0]


def _sign(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def _ternary(weight: Tensor) -> Tensor:
    signs, scale = ternary_rows(weight.flatten(1))
    return (signs * scale.unsqueeze(1)).reshape(weight.shape).to(weight.dtype)
