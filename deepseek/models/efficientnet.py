"""EfficientNet: inverted residual blocks whose width, depth and image size grow together.

Paper: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", arXiv:1905.11946.
Public counterpart: `EfficientNetForImageClassification` of transformers; equal weights give equal logits. In training
the two differ where `drop_connect` is not 0: here, as in the paper's code, it leaves out whole samples of a branch.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.models.pretrained.mixin import PretrainedMixin
from deepseek.nn.channel_rounding import round_channels
from deepseek.nn.conv_norm import ConvNorm, ConvStyle, Padding, init_conv
from deepseek.nn.dropout import dropout
from deepseek.nn.float_tensor import float_tensor
from deepseek.nn.image_input import check_batch_statistics, check_image, example_image
from deepseek.nn.inverted_residual import InvertedResidual, InvertedResidualShape
from deepseek.nn.recompute_norm import recomputed_with_norms
from deepseek.nn.squeeze_excite import SqueezeExcite
from deepseek.nn.stochastic_depth import linear_rates


class EfficientNetStage(Config):
    """A row of the paper's table 1: blocks of equal sizes, before scaling."""

    kernel_size: Literal[3, 5, 7] = 3
    """Side of the depthwise filters."""
    channels: int = Field(ge=1, le=1 << 16)
    """Channels that come out."""
    depth: int = Field(default=1, ge=1, le=1024)
    """Number of blocks."""
    stride: Literal[1, 2] = 1
    """2: the first block halves the size."""
    expand_ratio: int = Field(default=6, ge=1, le=64)
    """How many times wider a block is inside."""


_B0: tuple[tuple[Literal[3, 5, 7], int, int, Literal[1, 2], int], ...] = (
    (3, 16, 1, 1, 1),
    (3, 24, 2, 2, 6),
    (5, 40, 2, 2, 6),
    (3, 80, 3, 2, 6),
    (5, 112, 3, 1, 6),
    (5, 192, 4, 2, 6),
    (3, 320, 1, 1, 6),
)


def _b0() -> list[EfficientNetStage]:
    return [EfficientNetStage(kernel_size=k, channels=c, depth=d, stride=s, expand_ratio=e) for k, c, d, s, e in _B0]


class EfficientNetConfig(Config):
    """Sizes of an EfficientNet; the defaults are B0."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    num_channels: int = Field(default=3, ge=1, le=4096)
    """Channels of an image."""
    num_labels: int = Field(default=1000, ge=1, le=1 << 24)
    """Number of classes."""
    image_size: int = Field(default=224, ge=1, le=1 << 14)
    """Height and width the sizes are meant for; others work too."""
    width_multiplier: float = Field(default=1.0, gt=0, le=64)
    """Scales every number of channels."""
    depth_multiplier: float = Field(default=1.0, gt=0, le=64)
    """Scales the number of blocks of each stage, rounded up."""
    channel_divisor: int = Field(default=8, ge=1, le=1024)
    """Numbers of channels are rounded to multiples of this."""
    stages: list[EfficientNetStage] = Field(default_factory=_b0, min_length=1, max_length=64)
    """The stages before scaling."""
    squeeze_ratio: float = Field(default=0.25, gt=0, le=1)
    """Channels inside squeeze and excite, as a share of those that come into the block."""
    symmetric_blocks: list[Annotated[int, Field(ge=0)]] | None = None
    """null: TensorFlow's padding rule for the size met. A list fixes the padding whatever the size, as Keras weights
    have it: that of an even size, and of an odd one in the blocks named (0 is the first)."""
    pooling: Literal["mean", "max"] = "mean"
    """How the last feature map becomes one vector."""
    activation: Literal["relu", "relu6", "silu", "hardswish", "gelu"] = "silu"
    """The activation."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of features set to zero before the classifier, in training."""
    drop_connect: float = Field(default=0.2, ge=0, lt=1)
    """Share of samples for which a residual branch is left out in training; rises from 0 at the first block."""
    norm_eps: float = Field(default=1e-3, gt=0)
    """Added to the variance in batch norms."""
    norm_momentum: float = Field(default=0.01, gt=0, le=1)
    """Share of a new batch in batch norm's running statistics."""
    gradient_checkpointing: bool = False
    """Compute block activations again in the backward pass: less memory, about a third more time."""

    def width(self, channels: float) -> int:
        """Return a number of channels, scaled and rounded."""
        return round_channels(channels * self.width_multiplier, self.channel_divisor)

    @property
    def stride(self) -> int:
        """How many pixels of an image side make one of the last feature map."""
        return 1 << (1 + sum(stage.stride == 2 for stage in self.stages))

    def shapes(self) -> list[tuple[InvertedResidualShape, bool]]:
        """Return every block's shape and whether it adds its input: those that repeat a stage's first block do."""
        shapes, channels = [], self.width(32)
        for stage in self.stages:
            for index in range(math.ceil(self.depth_multiplier * stage.depth)):
                expanded = channels * stage.expand_ratio if stage.expand_ratio != 1 else None
                stride = 1 if index else stage.stride
                shape = InvertedResidualShape(channels, self.width(stage.channels), expanded, stage.kernel_size, stride)
                shapes.append((shape, index > 0))
                channels = shape.out_channels
        return shapes

    def block_padding(self, index: int) -> Padding:
        """Return how block `index` pads."""
        if self.symmetric_blocks is None:
            return "same"
        return "symmetric" if index in self.symmetric_blocks else "same_even"


class EfficientNet(PretrainedMixin, nn.Module):
    """Images to class logits."""

    config: EfficientNetConfig

    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__()
        self.config = config
        shapes = config.shapes()
        self.stem = ConvNorm(config.num_channels, config.width(32), 3, style=_style(config, -1), stride=2)
        rates = linear_rates(config.drop_connect, len(shapes), reach_end=False)
        self.blocks = nn.ModuleList(
            InvertedResidual(
                shape,
                _style(config, index),
                residual=residual,
                squeeze_excite=SqueezeExcite(
                    shape.inside, max(1, int(shape.in_channels * config.squeeze_ratio)), activation=config.activation
                ),
                drop_rate=rates[index],
            )
            for index, (shape, residual) in enumerate(shapes)
        )
        self.last = ConvNorm(shapes[-1][0].out_channels, config.width(1280), style=_style(config, -1))
        self.classifier = nn.Linear(config.width(1280), config.num_labels)
        self.init_weights()

    def init_weights(self) -> None:
        """Normal filters of deviation sqrt(2 / fan-out); the classifier uniform within 1/sqrt(num_labels), no bias."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_conv(module)
        bound = 1 / math.sqrt(self.config.num_labels)
        nn.init.uniform_(self.classifier.weight, -bound, bound)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return logits (batch, num_labels) for `pixel_values` (batch, num_channels, height, width), floats.

        Raises ModelError for other shapes and number formats.
        """
        features = self.forward_features(pixel_values)
        pooled = features.mean((2, 3)) if self.config.pooling == "mean" else features.amax((2, 3))
        logits: Tensor = self.classifier(dropout(pooled, self.config.dropout, self.training))
        return logits

    def forward_features(self, pixel_values: Tensor) -> Tensor:
        """Return the last feature map: (batch, width(1280), height / config.stride, width / config.stride)."""
        config = self.config
        # padding that does not follow the size rounds every halving down
        minimum = 1 if config.symmetric_blocks is None else config.stride
        check_image("pixel_values", pixel_values, config.num_channels, minimum)
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


def _style(config: EfficientNetConfig, block: int) -> ConvStyle:
    return ConvStyle(config.activation, config.norm_eps, config.norm_momentum, config.block_padding(block))
