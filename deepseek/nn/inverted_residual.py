"""The inverted residual block: widen, filter each channel alone, narrow without an activation, add.

Sources: Sandler et al. 2018, "MobileNetV2", arXiv:1801.04381; with squeeze and excite Howard et al. 2019, "Searching
for MobileNetV3", arXiv:1905.02244.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from deepseek.nn.conv_norm import ConvNorm, ConvStyle
from deepseek.nn.stochastic_depth import StochasticDepth


@dataclass(frozen=True)
class InvertedResidualShape:
    """Sizes of a block. `expanded` channels are inside; None leaves the widening convolution out."""

    in_channels: int
    out_channels: int
    expanded: int | None = None
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1

    @property
    def inside(self) -> int:
        """Channels between widening and narrowing."""
        return self.expanded or self.in_channels


class InvertedResidual(nn.Module):
    """1x1 up, depthwise, perhaps `squeeze_excite` (for `shape.inside` channels), 1x1 down.

    With `residual` the input is added; the shape must allow it.
    """

    def __init__(
        self,
        shape: InvertedResidualShape,
        style: ConvStyle,
        *,
        residual: bool,
        squeeze_excite: nn.Module | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.expand = ConvNorm(shape.in_channels, shape.inside, style=style) if shape.expanded else None
        self.depthwise = ConvNorm(
            shape.inside,
            shape.inside,
            shape.kernel_size,
            style=style,
            stride=shape.stride,
            groups=shape.inside,
            dilation=shape.dilation,
        )
        self.squeeze_excite = squeeze_excite
        self.project = ConvNorm(shape.inside, shape.out_channels, style=style.linear)
        self.drop = StochasticDepth(drop_rate) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, out_channels, height / stride, width / stride) for x (batch, in_channels, height, width)."""
        inside = self.expand(x) if self.expand is not None else x
        inside = self.depthwise(inside)
        if self.squeeze_excite is not None:
            inside = self.squeeze_excite(inside)
        out: Tensor = self.project(inside)
        return x + self.drop(out) if self.drop is not None else out
