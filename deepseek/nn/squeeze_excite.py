"""Squeeze and excite: each channel is scaled by a number between 0 and 1 that all channels' means decide.

Source: Hu et al. 2018, "Squeeze-and-Excitation Networks", arXiv:1709.01507.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.conv_norm import Activation, activation_module


class SqueezeExcite(nn.Module):
    """Mean over the image, two 1x1 convolutions with an activation between, a gate.

    The gate is a sigmoid, or its piecewise linear form (MobileNetV3).
    """

    def __init__(
        self,
        channels: int,
        reduced: int,
        *,
        activation: Activation = "relu",
        gate: Literal["sigmoid", "hardsigmoid"] = "sigmoid",
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, reduced, 1)
        self.activation = activation_module(activation)
        self.expand = nn.Conv2d(reduced, channels, 1)
        self.hard = gate == "hardsigmoid"

    def forward(self, x: Tensor) -> Tensor:
        """Return x (batch, channels, height, width), scaled."""
        gate = self.expand(self.activation(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * (F.hardsigmoid(gate) if self.hard else gate.sigmoid())
