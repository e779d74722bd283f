"""MobileNetV3: inverted residual blocks found by search, with squeeze and excite and the hard swish.

Paper: Howard et al. 2019, "Searching for MobileNetV3", arXiv:1905.02244, tables 1 (large) and 2 (small).
Public counterpart: torchvision's `mobilenet_v3_large` and `mobilenet_v3_small`, of equal parameter counts; as there,
the last 1x1 convolution of "small" has no squeeze and excite, which table 2 has.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.models.pretrained.mixin import PretrainedMixin
from deepseek.nn.channel_rounding import round_channels
from deepseek.nn.conv_norm import ConvNorm, ConvStyle, init_conv
from deepseek.nn.dropout import dropout
from deepseek.nn.float_tensor import float_tensor
from deepseek.nn.image_input import check_batch_statistics, check_image, example_image
from deepseek.nn.inverted_residual import InvertedResidual, InvertedResidualShape
from deepseek.nn.recompute_norm import recomputed_with_norms
from deepseek.nn.squeeze_excite import SqueezeExcite


class MobileNetV3Block(Config):
    """One row of the paper's tables."""

    kernel_size: Literal[3, 5, 7] = 3
    """Side of the depthwise filters."""
    expanded: int = Field(ge=1, le=1 << 16)
    """Channels inside; as many as go in: no 1x1 convolution before."""
    channels: int = Field(ge=1, le=1 << 16)
    """Channels that come out."""
    squeeze_excite: bool = False
    """Squeeze and excite to a quarter of the channels inside."""
    activation: Literal["relu", "hardswish"] = "relu"
    """The activation."""
    stride: Literal[1, 2] = 1
    """2 halves the size."""


_LARGE: tuple[tuple[Literal[3, 5, 7], int, int, bool, Literal["relu", "hardswish"], Literal[1, 2]], ...] = (
    (3, 16, 16, False, "relu", 1),
    (3, 64, 24, False, "relu", 2),
    (3, 72, 24, False, "relu", 1),
    (5, 72, 40, True, "relu", 2),
    (5, 120, 40, True, "relu", 1),
    (5, 120, 40, True, "relu", 1),
    (3, 240, 80, False, "hardswish", 2),
    (3, 200, 80, False, "hardswish", 1),
    (3, 184, 80, False, "hardswish", 1),
    (3, 184, 80, False, "hardswish", 1),
    (3, 480, 112, True, "hardswish", 1),
    (3, 672, 112, True, "hardswish", 1),
    (5, 672, 160, True, "hardswish", 2),
    (5, 960, 160, True, "hardswish", 1),
    (5, 960, 160, True, "hardswish", 1),
)


def _large() -> list[MobileNetV3Block]:
    return [
        MobileNetV3Block(kernel_size=k, expanded=e, channels=c, squeeze_excite=se, activation=act, stride=s)
        for k, e, c, se, act, s in _LARGE
    ]


class MobileNetV3Config(Config):
    """Sizes of a MobileNetV3; the defaults are "large"."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    num_channels: int = Field(default=3, ge=1, le=4096)
    """Channels of an image."""
    num_labels: int = Field(default=1000, ge=1, le=1 << 24)
    """Number of classes."""
    image_size: int = Field(default=224, ge=1, le=1 << 14)
    """Height and width the sizes are meant for; any other works."""
    blocks: list[MobileNetV3Block] = Field(default_factory=_large, min_length=1, max_length=1024)
    """The blocks, first to last."""
    stem_size: int = Field(default=16, ge=1, le=1 << 16)
    """Channels after the first convolution."""
    hidden_size: int = Field(default=1280, ge=1, le=1 << 16)
    """Width of the layer between the mean over the image and the classifier."""
    width_multiplier: float = Field(default=1.0, gt=0, le=64)
    """Scales the numbers of channels of stem and blocks."""
    channel_divisor: int = Field(default=8, ge=1, le=1024)
    """Numbers of channels are rounded to multiples of this."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of features set to zero before the classifier, in training."""
    norm_eps: float = Field(default=1e-3, gt=0)
    """Added to the variance in batch norms."""
    norm_momentum: float = Field(default=0.01, gt=0, le=1)
    """Share of a new batch in batch norm's running statistics."""
    gradient_checkpointing: bool = False
    """Compute block activations again in the backward pass: less memory, about a third more time."""

    @property
    def stride(self) -> int:
        """How many pixels of an image side make one of the last feature map."""
        return 1 << (1 + sum(block.stride == 2 for block in self.blocks))

    def width(self, channels: float) -> int:
        """Return a number of channels, scaled and rounded."""
        return round_channels(channels * self.width_multiplier, self.channel_divisor)


class MobileNetV3(PretrainedMixin, nn.Module):
    """Images to class logits."""

    config: MobileNetV3Config

    def __init__(self, config: MobileNetV3Config) -> None:
        super().__init__()
        self.config = config
        style = ConvStyle("hardswish", config.norm_eps, config.norm_momentum)
        channels = config.width(config.stem_size)
        self.stem = ConvNorm(config.num_channels, channels, 3, style=style, stride=2)
        self.blocks = nn.ModuleList()
        for block in config.blocks:
            self.blocks.append(_block(channels, block, config))
            channels = config.width(block.channels)
        last = 6 * channels
        self.last = ConvNorm(channels, last, style=style)
        self.hidden = nn.Linear(last, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.init_weights()

    def init_weights(self) -> None:
        """Normal filters of deviation sqrt(2 / fan-out), linear layers of deviation 0.01 without bias."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_conv(module)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return logits (batch, num_labels) for `pixel_values` (batch, num_channels, height, width), floats.

        Raises ModelError for other shapes and number formats.
        """
        features = F.hardswish(self.hidden(self.forward_features(pixel_values).mean((2, 3))))
        logits: Tensor = self.classifier(dropout(features, self.config.dropout, self.training))
        return logits

    def forward_features(self, pixel_values: Tensor) -> Tensor:
        """Return the last feature map: (batch, 6 * the last block's channels, height / stride, width / stride)."""
        config = self.config
        check_image("pixel_values", pixel_values, config.num_channels)
        if self.training:
            check_batch_statistics("pixel_values", pixel_values, config.stride)
        x = self.stem(pixel_values.to(float_tensor(self.stem.conv).dtype))
        for block in self.blocks:
            x = recomputed_with_norms(config.gradient_checkpointing and self.training, block, x)
        features: Tensor = self.last(x)
        return features

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return `pixel_values` (batch_size, num_channels, image_size, image_size) of normal noise."""
        config = self.config
        image = example_image(config.num_channels, config.image_size, batch_size, float_tensor(self.stem.conv))
        return {"pixel_values": image}


def _block(in_channels: int, block: MobileNetV3Block, config: MobileNetV3Config) -> InvertedResidual:
    out_channels, expanded = config.width(block.channels), config.width(block.expanded)
    widens = expanded != in_channels
    shape = InvertedResidualShape(
        in_channels, out_channels, expanded if widens else None, block.kernel_size, block.stride
    )
    gate = None
    if block.squeeze_excite:
        gate = SqueezeExcite(expanded, round_channels(expanded / 4, config.channel_divisor), gate="hardsigmoid")
    return InvertedResidual(
        shape,
        ConvStyle(block.activation, config.norm_eps, config.norm_momentum),
        residual=block.stride == 1 and in_channels == out_channels,
        squeeze_excite=gate,
    )
