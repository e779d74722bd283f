"""Convolutions stored in int8 and computed in floating point on the dequantized values, in one to three dimensions.

They give the numbers and the size of an int8 convolution, not its speed: that comes from a runtime that fuses the
quantize and dequantize steps. Not here: the choice of ranges (`deepseek.quantization`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

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

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
ConvTranspose = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def conv_rows(weight: Tensor, groups: int, transposed: bool) -> Tensor:
    """Return a convolution's weight with its output channels first, `(out_channels, in_channels / groups, *kernel)`.

    A transposed convolution stores `(in_channels, out_channels / groups, *kernel)`.
    """
    if not transposed:
        return weight
    return torch.unflatten(weight, 0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def conv_weight(rows: Tensor, groups: int, transposed: bool) -> Tensor:
    """Undo `conv_rows`."""
    if not transposed:
        return rows
    return torch.unflatten(rows, 0, (groups, -1)).transpose(1, 2).flatten(0, 1).contiguous()


class Int8Conv(nn.Module):
    """What int8 convolutions share; the leaves below say which layer of torch each stands for.

    Input `(batch, in_channels, *space)`, output of the same dtype. `dynamic` quantizes each sample of the batch with
    its own scale, `static` with a calibrated one. State dict: `weight` int8 (the float layer's shape), `scale` fp32
    `(out_channels,)`, `bias` fp32; `static` adds `input_scale` and `input_zero_point` (scalars).
    """

    kind: ClassVar[str]
    transposed: ClassVar[bool] = False
    float_form: ClassVar[Callable[..., Tensor]]

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None

    def __init__(self, conv: Conv | ConvTranspose, mode: Int8Mode = "dynamic", symmetric: bool = True) -> None:
        """Take shape and strides from `conv`, not its weights (`from_conv` takes both)."""
        super().__init__()
        if conv.padding_mode != "zeros":
            raise ModelError("only zero padding is supported in int8", found=conv.padding_mode, wanted="zeros")
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size: tuple[int, ...] = conv.kernel_size
        self.stride: tuple[int, ...] = conv.stride
        self.padding: tuple[int, ...] | str = conv.padding
        self.dilation: tuple[int, ...] = conv.dilation
        self.output_padding: tuple[int, ...] = conv.output_padding
        self.groups = conv.groups
        self.mode, self.symmetric = check_mode(mode), symmetric
        device, static = conv.weight.device, mode == "static"
        self.register_buffer("weight", torch.zeros(conv.weight.shape, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.ones(conv.out_channels, device=device))
        register_optional(self, "bias", None if conv.bias is None else torch.zeros(conv.out_channels, device=device))
        register_optional(self, "input_scale", torch.ones((), device=device) if static else None)
        register_optional(self, "input_zero_point", torch.zeros((), device=device) if static else None)

    @classmethod
    def from_conv(cls, conv: Conv | ConvTranspose, mode: Int8Mode = "dynamic", symmetric: bool = True) -> Self:
        """Return an int8 copy of `conv`; a static copy still needs `set_input_range`."""
        layer = cls(conv, mode, symmetric)
        rows, scale = quantize_rows(conv_rows(conv.weight, conv.groups, cls.transposed))
        layer.set_weight(rows, scale)
        if conv.bias is not None:
            layer.bias = conv.bias.detach().to(torch.float32, copy=True)
        return layer.train(conv.training)

    def set_weight(self, rows: Tensor, scale: Tensor) -> None:
        """Take int8 `rows` `(out_channels, in_channels / groups, *kernel)` and their scales `(out_channels,)`."""
        self.weight, self.scale = conv_weight(rows, self.groups, self.transposed), scale

    def set_input_range(self, scale: float, zero_point: int) -> None:
        """Set how a static layer quantizes its input. Raises ModelError in the other modes."""
        if self.input_scale is None or self.input_zero_point is None:
            raise ModelError("only a static layer has a fixed input range", found=self.mode, wanted="static")
        self.input_scale.fill_(scale)
        self.input_zero_point.fill_(zero_point)

    def forward(self, x: Tensor) -> Tensor:
        values = x.to(torch.float32)
        if self.mode != "weight_only":
            exact = values.detach()
            quantized = self._fake_quantize(exact)
            values = values + (quantized - exact) if values.requires_grad else quantized  # gradients straight-through
        return self._convolve(values).to(x.dtype)

    def dequantized_weight(self) -> Tensor:
        """Return the fp32 weight that the int8 weight and its scales stand for."""
        scale = self.scale.to(torch.float32)
        rest = (1,) * len(self.kernel_size)
        if not self.transposed:
            return self.weight.to(torch.float32) * scale.reshape(-1, 1, *rest)
        grouped = torch.unflatten(self.weight.to(torch.float32), 0, (self.groups, -1))
        return (grouped * scale.reshape(self.groups, 1, -1, *rest)).flatten(0, 1)

    def _convolve(self, values: Tensor) -> Tensor:
        settings: tuple[Any, ...] = (self.stride, self.padding, self.dilation, self.groups)
        if self.transposed:
            settings = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return type(self).float_form(values, self.dequantized_weight(), self.bias, *settings)

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


class Int8Conv1d(Int8Conv):
    """`nn.Conv1d` with an int8 weight; input `(batch, in_channels, length)`."""

    kind = "conv1d"
    float_form = F.conv1d


class Int8Conv2d(Int8Conv):
    """`nn.Conv2d` with an int8 weight; input `(batch, in_channels, height, width)`."""

    kind = "conv2d"
    float_form = F.conv2d


class Int8Conv3d(Int8Conv):
    """`nn.Conv3d` with an int8 weight; input `(batch, in_channels, depth, height, width)`."""

    kind = "conv3d"
    float_form = F.conv3d


class Int8ConvTranspose1d(Int8Conv):
    """`nn.ConvTranspose1d` with an int8 weight; the size of its output is that of its settings alone."""

    kind = "conv_transpose1d"
    transposed = True
    float_form = F.conv_transpose1d


class Int8ConvTranspose2d(Int8Conv):
    """`nn.ConvTranspose2d` with an int8 weight; the size of its output is that of its settings alone."""

    kind = "conv_transpose2d"
    transposed = True
    float_form = F.conv_transpose2d


class Int8ConvTranspose3d(Int8Conv):
    """`nn.ConvTranspose3d` with an int8 weight; the size of its output is that of its settings alone."""

    kind = "conv_transpose3d"
    transposed = True
    float_form = F.conv_transpose3d


INT8_CONVS: dict[type[nn.Module], type[Int8Conv]] = {
    nn.Conv1d: Int8Conv1d,
    nn.Conv2d: Int8Conv2d,
    nn.Conv3d: Int8Conv3d,
    nn.ConvTranspose1d: Int8ConvTranspose1d,
    nn.ConvTranspose2d: Int8ConvTranspose2d,
    nn.ConvTranspose3d: Int8ConvTranspose3d,
}
"""The int8 form of each convolution of torch."""
