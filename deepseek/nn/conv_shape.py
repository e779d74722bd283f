"""The geometry of a 2-D convolution apart from its weights: what layers that store them packed remember of it."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.errors import ModelError


class ConvShape(NamedTuple):
    """Channels, kernel and steps of an `nn.Conv2d`; `padding` is in rows and columns, the same on both sides."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Self:
        """Read the geometry of `conv`. Raises ModelError for a padding that a packed layer can't have."""
        if conv.padding_mode != "zeros":
            raise ModelError("only zero padding has a packed form", found=conv.padding_mode, wanted="zeros")
        columns_left, columns_right, rows_above, rows_below = conv._reversed_padding_repeated_twice
        if columns_left != columns_right or rows_above != rows_below:
            raise ModelError(
                "only padding that is the same on both sides has a packed form",
                found=f"padding='{conv.padding}', kernel {conv.kernel_size}",
                fix="pad with nn.ZeroPad2d before the layer, or name it in `skip`",
            )
        stride, dilation = _pair(conv.stride), _pair(conv.dilation)
        padding = (rows_above, columns_left)
        return cls(conv.in_channels, conv.out_channels, _pair(conv.kernel_size), stride, padding, dilation, conv.groups)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """`(out_channels, in_channels / groups, rows, columns)`."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def weights_per_channel(self) -> int:
        """How many weights one output channel has."""
        return self.in_channels // self.groups * self.kernel_size[0] * self.kernel_size[1]

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of the output for an input of `height` rows and `width` columns."""
        sizes = zip((height, width), self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        rows, columns = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in sizes
        )
        return rows, columns

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution of `x` with a weight of `weight_shape` (or one that reshapes to it)."""
        kernel = weight.reshape(self.weight_shape)
        shift = None if bias is None else bias.to(x.dtype)
        return F.conv2d(x, kernel, shift, self.stride, self.padding, self.dilation, self.groups)

    def describe(self) -> str:
        """Return the sizes as `extra_repr` shows them."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return value[0], value[1]
