"""MobileNetV2: inverted residual blocks, narrow outside and wide inside, with depthwise 3x3 filters.

Paper: Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv:1801.04381.
Public counterpart: `MobileNetV2ForImageClassification` of transformers; equal weights give equal logits.
Not here: the segmentation head (DeepLabV3+).
"""

from __future__ import annotations

from typing import ClassVar, Literal

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

STAGES = ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
"""Table 2 of the paper from its third row on: channels, blocks, stride of the first block."""


class MobileNetV2Config(Config):
    """Sizes of a MobileNetV2."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    num_channels: int = Field(default=3, ge=1, le=4096)
    """Channels of an image."""
    num_labels: int = Field(default=1000, ge=1, le=1 << 24)
    """Number of classes."""
    image_size: int = Field(default=224, ge=1, le=1 << 14)
    """Height and width the sizes are meant for; any other works."""
    width_multiplier: float = Field(default=1.0, gt=0, le=64)
    """Scales every number of channels."""
    channel_divisor: int = Field(default=8, ge=1, le=1024)
    """Numbers of channels are rounded to multiples of this."""
    min_channels: int = Field(default=8, ge=1, le=1024)
    """No layer has fewer channels than this."""
    expand_ratio: float = Field(default=6.0, gt=0, le=64)
    """How many times wider a block is inside."""
    expand_first_block: bool = False
    """The first block has a 1x1 convolution before its depthwise one, as all others have."""
    shrink_last_layer: bool = False
    """A width_multiplier below 1 narrows the last 1x1 convolution too; else it keeps 1280 channels."""
    output_stride: Literal[8, 16, 32] = 32
    """Pixels of an image side for one of the last feature map; below 32, filters are dilated instead."""
    activation: Literal["relu", "relu6", "silu", "hardswish", "gelu"] = "relu6"
    """The activation."""
    padding: Literal["symmetric", "same"] = "symmetric"
    """Zeros around a map: equal sides, or TensorFlow's rule (the end gets more), as its weights want it."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of features set to zero before the classifier, in training."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the variance in batch norms."""
    norm_momentum: float = Field(default=0.1, gt=0, le=1)
    """Share of a new batch in batch norm's running statistics."""
    gradient_checkpointing: bool = False
    """Compute block activations again in the backward pass: less memory, about a third more time."""

    def width(self, channels: float) -> int:
        """Return a number of channels, scaled and rounded."""
        return self.rounded(round(channels * self.width_multiplier))

    def rounded(self, channels: float) -> int:
        """Return a number of channels, rounded."""
        return round_channels(channels, self.channel_divisor, self.min_channels)

    @property
    def last_width(self) -> int:
        """Channels of the last feature map."""
        return 1280 if self.width_multiplier < 1 and not self.shrink_last_layer else self.width(1280)

    def shapes(self) -> list[InvertedResidualShape]:
        """Return the shapes of all blocks after the first."""
        shapes, channels, stride, dilation = [], self.width(16), 2, 1
        for size, depth, first in STAGES:
            for index in range(depth):
                wanted = first if index == 0 else 1
                stays = stride == self.output_stride
                shapes.append(
                    InvertedResidualShape(
                        channels,
                        self.width(size),
                        self.rounded(round(channels * self.expand_ratio)),
                        stride=1 if stays else wanted,
                        dilation=dilation if stays else 1,
                    )
                )
                # a stride left out spreads the filters of the blocks that follow, not of its own
                stride, dilation = (stride, dilation * wanted) if stays else (stride * wanted, dilation)
                channels = self.width(size)
        return shapes


class MobileNetV2(PretrainedMixin, nn.Module):
    """Images to class logits."""

    config: MobileNetV2Config

    def __init__(self, config: MobileNetV2Config) -> None:
        super().__init__()
        self.config = config
        style = ConvStyle(config.activation, config.norm_eps, config.norm_momentum, config.padding)
        stem, first, shapes = config.width(32), config.width(16), config.shapes()
        self.stem = ConvNorm(config.num_channels, stem, 3, style=style, stride=2)
        expanded = stem if config.expand_first_block else None
        self.first_block = InvertedResidual(InvertedResidualShape(stem, first, expanded), style, residual=False)
        self.blocks = nn.ModuleList(
            InvertedResidual(shape, style, residual=shape.stride == 1 and shape.in_channels == shape.out_channels)
            for shape in shapes
        )
        self.last = ConvNorm(shapes[-1].out_channels, config.last_width, style=style)
        self.classifier = nn.Linear(config.last_width, config.num_labels)
        self.init_weights()

    def init_weights(self) -> None:
        """Normal filters of deviation sqrt(2 / fan-out), a classifier of deviation 0.01 without bias."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_conv(module)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return logits (batch, num_labels) for `pixel_values` (batch, num_channels, height, width), floats.

        Raises ModelError for other shapes and number formats.
        """
        features = self.forward_features(pixel_values).mean((2, 3))
        logits: Tensor = self.classifier(dropout(features, self.config.dropout, self.training))
        return logits

    def forward_features(self, pixel_values: Tensor) -> Tensor:
        """Return the last feature map: (batch, last_width, height / output_stride, width / output_stride)."""
        config = self.config
        check_image("pixel_values", pixel_values, config.num_channels)
        if self.training:
            check_batch_statistics("pixel_values", pixel_values, config.output_stride)
        x = self.stem(pixel_values.to(float_tensor(self.stem.conv).dtype))
        for block in (self.first_block, *self.blocks):
            x = recomputed_with_norms(config.gradient_checkpointing and self.training, block, x)
        features: Tensor = self.last(x)
        return features

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return `pixel_values` (batch_size, num_channels, image_size, image_size) of normal noise."""
        config = self.config
        image = example_image(config.num_channels, config.image_size, batch_size, float_tensor(self.stem.conv))
        return {"pixel_values": image}
