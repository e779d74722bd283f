"""A 2-D convolution stored in int8 and computed in floating point on the dequantized values.

It gives the numbers and the size of an int8 convolution, not its speed: that comes from a runtime that fuses the
quantize and dequantize steps. Not here: the choice of ranges (`deepseek.quantization`).
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.errors import ModelError
from deepseek.nn.int8_linear import (
    Int8Mode,
    check_mode,
    quantize_fixed,
    quantize_rows,
    quantize_tokens,
    register_optional,
)


class Int8Conv2d(nn.Module):
    """`nn.Conv2d` (zero padding) with an int8 weight, one scale for each output channel.

    Input `(batch, in_channels, height, width)`, output of the same dtype. `dynamic` quantizes each sample of the batch
    with its own scale, `static` with a calibrated one. State dict: `weight` int8, `scale` fp32 `(out_channels,)`,
    `bias` fp32; `static` adds `input_scale` and `input_zero_point` (scalars).
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None

    def __init__(self, conv: nn.Conv2d, mode: Int8Mode = "dynamic", symmetric: bool = True) -> None:
        """Take shape and strides from `conv`, not its weights (`from_conv` takes both)."""
        super().__init__()
        if conv.padding_mode != "zeros":
            raise ModelError("only zero padding is supported in int8", found=conv.padding_mode, wanted="zeros")
        self.in_channels, self.out_channels, self.kernel_size = conv.in_channels, conv.out_channels, conv.kernel_size
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.mode, self.symmetric = check_mode(mode), symmetric
        device, static = conv.weight.device, mode == "static"
        self.register_buffer("weight", torch.zeros(conv.weight.shape, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.ones(conv.out_channels, device=device))
        register_optional(self, "bias", None if conv.bias is None else torch.zeros(conv.out_channels, device=device))
        register_optional(self, "input_scale", torch.ones((), device=device) if static else None)
        register_optional(self, "input_zero_point", torch.zeros((), device=device) if static else None)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, mode: Int8Mode = "dynamic", symmetric: bool = True) -> Self:
        """Return an int8 copy of `conv`; a static copy still needs `set_input_range`."""
        layer = cls(conv, mode, symmetric)
        layer.weight, layer.scale = quantize_rows(conv.weight)
        if conv.bias is not None:
            layer.bias = conv.bias.detach().to(torch.float32, copy=True)
        return layer.train(conv.training)

    def set_input_range(self, scale: float, zero_point: int) -> None:
        """Set how a static layer quantizes its input. Raises ModelError in the other modes."""
        if self.input_scale is None or self.input_zero_point is None:
            raise ModelError("only a static layer has a fixed input range", found=self.mode, wanted="static")
        self.input_scale.fill_(scale)
        self.input_zero_point.fill_(zero_point)

    def forward(self, x: Tensor) -> Tensor:
        values = x.to(torch.float32)
        if self.mode != "weight_only":
            values = values + (self._fake_quantize(values.detach()) - values.detach())  # gradients straight-through
        weight = self.dequantized_weight()
        y = F.conv2d(values, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return y.to(x.dtype)

    def dequantized_weight(self) -> Tensor:
        """Return the fp32 weight that the int8 weight and its scales stand for."""
        return self.weight.to(torch.float32) * self.scale.to(torch.float32).reshape(-1, 1, 1, 1)

    def _fake_quantize(self, x: Tensor) -> Tensor:
        if self.input_scale is not None and self.input_zero_point is not None:
            return (
                quantize_fixed(x, self.input_scale, self.input_zero_point) - self.input_zero_point
            ) * self.input_scale
        integers, scale, zero_point = quantize_tokens(x.flatten(1), self.symmetric)
        return ((integers if zero_point is None else integers - zero_point) * scale).reshape(x.shape)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"mode={self.mode}, symmetric={self.symmetric}"
        )
