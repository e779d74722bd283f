"""The two operations of a quantized graph: values rounded to 8-bit levels and back, and an int8 weight as floats.

They are operators of torch's own kind (`torch.ops.deepseek`), so that `torch.export` keeps them whole; ONNX has them as
`QuantizeLinear` and `DequantizeLinear` (https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html). For inference: no
gradients. Not here: where they go (`placement.py`), their ONNX form (`translation.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("deepseek::quantize_dequantize", mutates_args=())
def quantize_dequantize(x: Tensor, scale: float, zero_point: int, signed: bool) -> Tensor:
    """Return `x` (any shape, float) rounded, ties to even, to the nearest of 256 levels.

    A level is `(integer - zero_point) * scale`. The integers are int8 (-128..127) if `signed`, else uint8 (0..255);
    what lies beyond is clipped.
    """
    low, high = (-128, 127) if signed else (0, 255)
    levels = (x / scale).round_().add_(zero_point).clamp_(low, high)
    return levels.sub_(zero_point).mul_(scale)


@quantize_dequantize.register_fake
def _(x: Tensor, scale: float, zero_point: int, signed: bool) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("deepseek::dequantize_weight", mutates_args=())
def dequantize_weight(weight: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Return float32 `weight * scale`: an int8 weight of any shape, one float32 scale for each index of `axis`."""
    shape = [1] * weight.dim()
    shape[axis] = -1
    return weight.to(torch.float32) * scale.to(torch.float32).reshape(shape)


@dequantize_weight.register_fake
def _(weight: Tensor, scale: Tensor, axis: int) -> Tensor:
    return torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
