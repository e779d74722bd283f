"""Linear layers and 2-D convolutions with weights of -1 and +1, eight to a byte, for inference.

With `signed_input` the input is reduced to signs too, and the product is counted by XOR and popcount where our kernel
is present; the same numbers in floating point elsewhere, under a gradient and in a traced graph.
Source: Rastegari et al. 2016, "XNOR-Net", arXiv:1603.05279. Not here: training them (`low_bit_training`).
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.binary_functions import binary_scale, mean_magnitude, sign, window_scale
from deepseek.nn.binary_kernel import BinaryKernel, pack_signs
from deepseek.nn.conv_shape import ConvShape
from deepseek.nn.int8_linear import register_optional
from deepseek.nn.packed_bits import pack, packed_size, unpack


class BinaryLinear(nn.Module):
    """`nn.Linear` with weights (and inputs) of -1 and 1. Input `(..., in_features)`, output of the same dtype.

    Output: signs of the input times signs of the weight, times the row's and the channel's mean magnitude, plus bias.
    State dict: `weight` uint8 `(out_features, ceil(in_features / 8))`, a bit is 1 for +1; `scale` fp32
    `(out_features,)`, `bias` fp32 if there is one.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, signed_input: bool = True) -> None:
        """Take the sizes of `linear`, not its weights (`from_linear` takes both)."""
        super().__init__()
        self.in_features, self.out_features, self.signed_input = linear.in_features, linear.out_features, signed_input
        self._kernel = BinaryKernel()
        self._shape = ConvShape(self.in_features, self.out_features, (1, 1), (1, 1), (0, 0), (1, 1), 1)
        width, device = packed_size(self.in_features, 1), linear.weight.device
        self.register_buffer("weight", torch.zeros(self.out_features, width, dtype=torch.uint8, device=device))
        self.register_buffer("scale", torch.ones(self.out_features, device=device))
        register_optional(self, "bias", None if linear.bias is None else torch.zeros(self.out_features, device=device))

    @classmethod
    def from_linear(cls, linear: nn.Linear, signed_input: bool = True) -> Self:
        """Return a binary copy of `linear`."""
        layer = cls(linear, signed_input)
        layer.weight, layer.scale = _packed(linear.weight)
        if linear.bias is not None:
            layer.bias = linear.bias.detach().to(torch.float32, copy=True)
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).to(torch.float32)
        if not self.signed_input:
            y = F.linear(rows, self.dequantized_weight(), self.bias)
        else:
            y = self._product_of_signs(rows)
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def dequantized_weight(self) -> Tensor:
        """Return the fp32 weight `(out_features, in_features)`."""
        return self._signs() * self.scale.to(torch.float32).unsqueeze(1)

    def _product_of_signs(self, rows: Tensor) -> Tensor:
        packed = pack_signs(rows.reshape(1, 1, *rows.shape), self._shape)
        if packed is not None:
            y = self._kernel.convolve(packed, (self.weight, self.scale, self.bias), packed.magnitude)
            return y.reshape(-1, self.out_features)
        y = F.linear(sign(rows), self._signs()) * self.scale.to(torch.float32) * mean_magnitude(rows, 1)
        return y if self.bias is None else y + self.bias

    def _signs(self) -> Tensor:
        return _unpacked(self.weight, self.in_features)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"signed_input={self.signed_input}"
        )


class BinaryConv2d(nn.Module):
    """`nn.Conv2d` (zero padding) with weights (and inputs) of -1 and 1; padding stays zero.

    Input `(batch, in_channels, height, width)`, output of the same dtype, in channels-last order where the kernel runs
    (it wants its input so too). Output: product of the signs, times the mean magnitude under each window and that of
    the channel's weights, plus bias. State dict: `weight` uint8 `(out_channels, ceil(weights of a channel / 8))`,
    `scale` fp32 `(out_channels,)`, `bias` fp32 if there is one.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, signed_input: bool = True) -> None:
        """Take the geometry of `conv`, not its weights (`from_conv` takes both)."""
        super().__init__()
        self.shape, self.signed_input = ConvShape.of(conv), signed_input
        self._kernel = BinaryKernel()
        channels, device = conv.out_channels, conv.weight.device
        width = packed_size(self.shape.weights_per_channel, 1)
        self.register_buffer("weight", torch.zeros(channels, width, dtype=torch.uint8, device=device))
        self.register_buffer("scale", torch.ones(channels, device=device))
        register_optional(self, "bias", None if conv.bias is None else torch.zeros(channels, device=device))

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, signed_input: bool = True) -> Self:
        """Return a binary copy of `conv`."""
        layer = cls(conv, signed_input)
        layer.weight, layer.scale = _packed(conv.weight)
        if conv.bias is not None:
            layer.bias = conv.bias.detach().to(torch.float32, copy=True)
        return layer.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        values = x.to(torch.float32)
        if not self.signed_input:
            return self.shape.convolve(values, self.dequantized_weight(), self.bias).to(x.dtype)
        packed = pack_signs(values.permute(0, 2, 3, 1), self.shape)
        if packed is not None:
            factor = window_scale(packed.magnitude.unsqueeze(1), self.shape)
            image = self._kernel.convolve(packed, (self.weight, self.scale, self.bias), factor)
            return image.permute(0, 3, 1, 2).to(x.dtype)
        y = self.shape.convolve(sign(values), self._signs(), None) * self.scale.to(torch.float32).reshape(-1, 1, 1)
        y = y * window_scale(mean_magnitude(values, 1), self.shape)
        return (y if self.bias is None else y + self.bias.reshape(-1, 1, 1)).to(x.dtype)

    def dequantized_weight(self) -> Tensor:
        """Return the fp32 weight `(out_channels, in_channels / groups, rows, columns)`."""
        return self._signs() * self.scale.to(torch.float32).reshape(-1, 1, 1, 1)

    def _signs(self) -> Tensor:
        return _unpacked(self.weight, self.shape.weights_per_channel).reshape(self.shape.weight_shape)

    def extra_repr(self) -> str:
        return f"{self.shape.describe()}, signed_input={self.signed_input}"


def _packed(weight: Tensor) -> tuple[Tensor, Tensor]:
    values = weight.detach().to(torch.float32)
    return pack((values.flatten(1) >= 0).to(torch.uint8), 1), binary_scale(values)


def _unpacked(packed: Tensor, width: int) -> Tensor:
    return unpack(packed, 1, width).to(torch.float32) * 2 - 1
