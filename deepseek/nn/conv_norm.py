"""Convolution, batch norm, activation: the unit that convolutional networks are made of.

The convolution has no bias, because batch norm subtracts the mean and adds its own.
Source: Ioffe and Szegedy 2015, "Batch Normalization", arXiv:1502.03167.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.same_padding import pad_same, same_padding

Activation = Literal["relu", "relu6", "silu", "hardswish", "gelu"]
"""Names of activations, as in a config."""

Padding = Literal["symmetric", "same", "same_even"]
"""Zeros around a feature map. "symmetric": equal sides. "same": TensorFlow's rule, by the size met. "same_even":
what that rule gives for sizes the stride divides, whatever the size."""


@dataclass(frozen=True)
class ConvStyle:
    """What the units of a network have in common."""

    activation: Activation | None = "relu"
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    """Share of the new batch in the running statistics (1 minus the decay of TensorFlow and Keras)."""
    padding: Padding = "symmetric"

    @property
    def linear(self) -> ConvStyle:
        """The same without an activation."""
        return replace(self, activation=None)


def activation_module(name: Activation | None) -> nn.Module:
    """Return a fresh module; None is the identity. Those whose gradient needs the output alone work in place."""
    modules: dict[str, nn.Module] = {
        "relu": nn.ReLU(inplace=True),
        "relu6": nn.ReLU6(inplace=True),
        "silu": nn.SiLU(),
        "hardswish": nn.Hardswish(),
        "gelu": nn.GELU(),
    }
    return modules[name] if name else nn.Identity()


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, activation. Kernels are square, of an odd size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        style: ConvStyle,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.by_size = style.padding == "same" and stride > 1
        reach = (kernel_size - 1) * dilation
        sides = (reach // 2, reach // 2)
        if style.padding == "same_even" and stride > 1:
            sides = same_padding(stride, kernel_size, stride, dilation)
        self.uneven = sides if sides[0] != sides[1] and not self.by_size else None
        padding = 0 if self.by_size or self.uneven else sides[0]
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation=dilation, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels, eps=style.norm_eps, momentum=style.norm_momentum)
        self.activation = activation_module(style.activation)
        self.window = (kernel_size, stride, dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, out_channels, height / stride, width / stride), rounded up; "same_even" rounds down."""
        if self.by_size:
            x = pad_same(x, *self.window)
        elif self.uneven:
            x = F.pad(x, (*self.uneven, *self.uneven))
        x = self.activation(self.norm(self.conv(x)))
        return x


def init_conv(conv: nn.Conv2d) -> None:
    """Fill with normal values of deviation sqrt(2 / fan-out), a bias with zeros.

    The fan-out counts the outputs that one input reaches, so a depthwise filter has its kernel's size.
    Source: He et al. 2015, "Delving Deep into Rectifiers", arXiv:1502.01852.
    """
    fan_out = math.prod(conv.kernel_size) * conv.out_channels // conv.groups
    nn.init.normal_(conv.weight, std=math.sqrt(2 / fan_out))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
