"""Linear layers and 2-D convolutions with ternary weights, four to a byte; inputs stay in floating point.

Not here: how weights become ternary (`ternary_weights`), training them (`low_bit_training`).
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from deepseek.nn.conv_shape import ConvShape
from deepseek.nn.int4_kernel import Int4Kernel, product
from deepseek.nn.int4_weights import MIDDLE
from deepseek.nn.int8_linear import register_optional
from deepseek.nn.packed_bits import pack, packed_size, unpack
from deepseek.nn.ternary_weights import ternary_rows


class TernaryLinear(nn.Module):
    """`nn.Linear` with weights of -1, 0 and 1. Input `(..., in_features)` fp32, bf16 or fp16; output of the same dtype.

    State dict: `weight` uint8 `(out_features, ceil(in_features / 4))`, two bits a weight that say weight + 1; `scale`
    fp32 `(out_features,)`, `bias` fp32 if there is one. Gradients reach the input, never the weight. On a CPU, few rows
    of input are multiplied by torch's 4-bit kernel.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    zero_point: Tensor | None = None
    group_size: int | None = None

    def __init__(self, linear: nn.Linear) -> None:
        """Take the sizes of `linear`, not its weights (`from_linear` takes both)."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._kernel = Int4Kernel()
        width, device = packed_size(self.in_features, 2), linear.weight.device
        self.register_buffer("weight", torch.zeros(self.out_features, width, dtype=torch.uint8, device=device))
        self.register_buffer("scale", torch.ones(self.out_features, device=device))
        register_optional(self, "bias", None if linear.bias is None else torch.zeros(self.out_features, device=device))

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Self:
        """Return a ternary copy of `linear`."""
        layer = cls(linear)
        signs, layer.scale = ternary_rows(linear.weight)
        layer.weight = pack((signs + 1).to(torch.uint8), 2)
        if linear.bias is not None:
            layer.bias = linear.bias.detach().to(torch.float32, copy=True)
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).to(torch.float32)
        return product(self, self._kernel, rows).to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def levels(self) -> Tensor:
        """Return the weights as the 4-bit kernel takes them: uint8 `(out_features, in_features)`, 8 means zero."""
        return unpack(self.weight, 2, self.in_features) + (MIDDLE - 1)

    def dequantized_weight(self) -> Tensor:
        """Return the fp32 weight `(out_features, in_features)`."""
        return _values(self.weight, self.scale, self.in_features)

    def stored_weight(self) -> Tensor:
        """Return what `dequantized_weight` returns: the weight as the 4-bit kernel's fallback takes it."""
        return self.dequantized_weight()

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class TernaryConv2d(nn.Module):
    """`nn.Conv2d` (zero padding) with weights of -1, 0 and 1, dequantized when used: small, not faster.

    Input `(batch, in_channels, height, width)`, output of its dtype. State dict: `weight` uint8
    `(out_channels, ceil(weights of a channel / 4))`, `scale` fp32 `(out_channels,)`, `bias` fp32 if there is one.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d) -> None:
        """Take the geometry of `conv`, not its weights (`from_conv` takes both)."""
        super().__init__()
        self.shape = ConvShape.of(conv)
        channels, device = conv.out_channels, conv.weight.device
        width = packed_size(self.shape.weights_per_channel, 2)
        self.register_buffer("weight", torch.zeros(channels, width, dtype=torch.uint8, device=device))
        self.register_buffer("scale", torch.ones(channels, device=device))
        register_optional(self, "bias", None if conv.bias is None else torch.zeros(channels, device=device))

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> Self:
        """Return a ternary copy of `conv`."""
        layer = cls(conv)
        signs, layer.scale = ternary_rows(conv.weight.flatten(1))
        layer.weight = pack((signs + 1).to(torch.uint8), 2)
        if conv.bias is not None:
            layer.bias = conv.bias.detach().to(torch.float32, copy=True)
        return layer.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.shape.convolve(x.to(torch.float32), self.dequantized_weight(), self.bias).to(x.dtype)

    def dequantized_weight(self) -> Tensor:
        """Return the fp32 weight `(out_channels, in_channels / groups, rows, columns)`."""
        return _values(self.weight, self.scale, self.shape.weights_per_channel).reshape(self.shape.weight_shape)

    def extra_repr(self) -> str:
        return self.shape.describe()


def _values(packed: Tensor, scale: Tensor, width: int) -> Tensor:
    return (unpack(packed, 2, width).to(torch.float32) - 1) * scale.to(torch.float32).unsqueeze(1)
