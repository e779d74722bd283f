"""Cross-stage partial blocks and fast spatial pyramid pooling: what YOLOv5 is made of.

All maps are (batch, channels, height, width).
Sources: CSP, Wang et al. 2019, arXiv:1911.11929; pyramid pooling, He et al. 2014, arXiv:1406.4729.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepseek.nn.conv_norm import ConvNorm, ConvStyle

CSP_STYLE = ConvStyle("silu", norm_eps=1e-3, norm_momentum=0.03)
"""Activation and batch norm of YOLOv5."""


class Bottleneck(nn.Module):
    """A 1x1 and a 3x3 convolution of equal width; with `shortcut` their result is added to the input."""

    def __init__(self, channels: int, shortcut: bool, style: ConvStyle = CSP_STYLE) -> None:
        super().__init__()
        self.reduce = ConvNorm(channels, channels, style=style)
        self.expand = ConvNorm(channels, channels, 3, style=style)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the input's shape."""
        out: Tensor = self.expand(self.reduce(x))
        return x + out if self.shortcut else out


class CSPBlock(nn.Module):
    """The CSP block with three convolutions ("C3"): one half goes through bottlenecks, one half around them."""

    def __init__(
        self, inputs: int, outputs: int, depth: int, shortcut: bool = True, style: ConvStyle = CSP_STYLE
    ) -> None:
        super().__init__()
        hidden = outputs // 2
        self.through = ConvNorm(inputs, hidden, style=style)
        self.around = ConvNorm(inputs, hidden, style=style)
        self.bottlenecks = nn.Sequential(*(Bottleneck(hidden, shortcut, style) for _ in range(depth)))
        self.join = ConvNorm(2 * hidden, outputs, style=style)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, outputs, height, width)."""
        joined: Tensor = self.join(torch.cat((self.bottlenecks(self.through(x)), self.around(x)), dim=1))
        return joined


class SPPF(nn.Module):
    """Pyramid pooling, fast: three 5x5 max poolings in a row see what 5x5, 9x9 and 13x13 ones side by side would."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 5, style: ConvStyle = CSP_STYLE) -> None:
        super().__init__()
        hidden = inputs // 2
        self.reduce = ConvNorm(inputs, hidden, style=style)
        self.join = ConvNorm(4 * hidden, outputs, style=style)
        self.pool = nn.MaxPool2d(kernel, stride=1, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, outputs, height, width)."""
        maps = [self.reduce(x)]
        for _ in range(3):
            maps.append(self.pool(maps[-1]))
        joined: Tensor = self.join(torch.cat(maps, dim=1))
        return joined
