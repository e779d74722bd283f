"""ResNet: stages of residual blocks of convolutions, each stage at half the size of the one before.

Paper: He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv:1512.03385. As most published weights have
it, a bottleneck block halves the size in its 3x3 convolution ("v1.5"); the paper's first 1x1 is a setting.
Public counterpart: `ResNetForImageClassification` of transformers; equal weights give equal logits.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.models.pretrained.mixin import PretrainedMixin
from deepseek.nn.conv_norm import ConvNorm, ConvStyle, init_conv
from deepseek.nn.float_tensor import float_tensor
from deepseek.nn.image_input import check_batch_statistics, check_image, example_image
from deepseek.nn.recompute_norm import recomputed_with_norms

REDUCTION = 4
"""How many times fewer channels a bottleneck has inside."""


class ResNetConfig(Config):
    """Sizes of a ResNet."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    num_channels: int = Field(default=3, ge=1, le=4096)
    """Channels of an image."""
    num_labels: int = Field(default=1000, ge=1, le=1 << 24)
    """Number of classes."""
    image_size: int = Field(default=224, ge=1, le=1 << 14)
    """Height and width the sizes are meant for; any other works."""
    block: Literal["basic", "bottleneck"] = "bottleneck"
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 with a quarter of the channels inside."""
    depths: list[Annotated[int, Field(ge=1, le=1024)]] = Field(default=[3, 4, 6, 3], min_length=1, max_length=16)
    """Blocks in each stage."""
    hidden_sizes: list[Annotated[int, Field(ge=1, le=1 << 16)]] = Field(
        default=[256, 512, 1024, 2048], min_length=1, max_length=16
    )
    """Channels at the end of each stage."""
    stem_size: int = Field(default=64, ge=1, le=1 << 16)
    """Channels after the first convolution."""
    first_stage_downsamples: bool = False
    """The first stage halves the size too."""
    downsample_in_first_conv: bool = False
    """A bottleneck halves the size in its first 1x1 convolution, as the paper has it, not in its 3x3."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the variance in batch norms."""
    norm_momentum: float = Field(default=0.1, gt=0, le=1)
    """Share of a new batch in batch norm's running statistics."""
    gradient_checkpointing: bool = False
    """Compute block activations again in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _stages_fit(self) -> ResNetConfig:
        if len(self.depths) != len(self.hidden_sizes):
            raise ValueError(
                f"depths has {len(self.depths)} stages and hidden_sizes {len(self.hidden_sizes)}; "
                f"nearest that fits: depths {(self.depths + self.depths[-1:] * 16)[: len(self.hidden_sizes)]}"
            )
        odd = [size for size in self.hidden_sizes if size % REDUCTION]
        if self.block == "bottleneck" and odd:
            fitting = [max(round(size / REDUCTION), 1) * REDUCTION for size in self.hidden_sizes]
            raise ValueError(
                f"hidden_sizes {odd} of bottlenecks can't be divided by {REDUCTION}; "
                f"nearest that fits: hidden_sizes {fitting}"
            )
        return self

    @property
    def stride(self) -> int:
        """How many pixels of an image side make one of the last feature map."""
        return 4 << (len(self.depths) - 1 + int(self.first_stage_downsamples))


class ResidualBlock(nn.Module):
    """Convolutions whose result is added to the input, which is projected where its shape differs."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, config: ResNetConfig, style: ConvStyle
    ) -> None:
        super().__init__()
        inside = out_channels // REDUCTION if config.block == "bottleneck" else out_channels
        if config.block == "bottleneck":
            first, second = (stride, 1) if config.downsample_in_first_conv else (1, stride)
            self.convs = nn.Sequential(
                ConvNorm(in_channels, inside, 1, style=style, stride=first),
                ConvNorm(inside, inside, 3, style=style, stride=second),
                ConvNorm(inside, out_channels, 1, style=style.linear),
            )
        else:
            self.convs = nn.Sequential(
                ConvNorm(in_channels, inside, 3, style=style, stride=stride),
                ConvNorm(inside, out_channels, 3, style=style.linear),
            )
        same = in_channels == out_channels and stride == 1
        self.shortcut = None if same else ConvNorm(in_channels, out_channels, 1, style=style.linear, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, out_channels, height / stride, width / stride), rounded up."""
        inside = self.convs(x)
        inside += x if self.shortcut is None else self.shortcut(x)  # batch norm does not need its output
        return F.relu_(inside)


class ResNet(PretrainedMixin, nn.Module):
    """Images to class logits."""

    config: ResNetConfig

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        style = ConvStyle("relu", config.norm_eps, config.norm_momentum)
        self.stem = ConvNorm(config.num_channels, config.stem_size, 7, style=style, stride=2)
        self.stages = nn.ModuleList()
        channels = config.stem_size
        for index, (depth, size) in enumerate(zip(config.depths, config.hidden_sizes, strict=True)):
            first = 2 if index or config.first_stage_downsamples else 1
            strides = [first, *[1] * (depth - 1)]
            inputs = [channels, *[size] * (depth - 1)]
            self.stages.append(
                nn.Sequential(
                    *(ResidualBlock(c, size, stride, config, style) for c, stride in zip(inputs, strides, strict=True))
                )
            )
            channels = size
        self.classifier = nn.Linear(channels, config.num_labels)
        self.init_weights()

    def init_weights(self) -> None:
        """Normal filters of deviation sqrt(2 / fan-out); the classifier as PyTorch has it."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_conv(module)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return logits (batch, num_labels) for `pixel_values` (batch, num_channels, height, width), floats.

        Raises ModelError for other shapes and number formats.
        """
        logits: Tensor = self.classifier(self.forward_features(pixel_values).mean((2, 3)))
        return logits

    def forward_features(self, pixel_values: Tensor) -> Tensor:
        """Return the last feature map: (batch, hidden_sizes[-1], height / config.stride, width / config.stride)."""
        config = self.config
        check_image("pixel_values", pixel_values, config.num_channels)
        if self.training:
            check_batch_statistics("pixel_values", pixel_values, config.stride)
        x = self.stem(pixel_values.to(float_tensor(self.stem.conv).dtype))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        for stage in self.stages:
            for block in stage:  # type: ignore[attr-defined]
                x = recomputed_with_norms(config.gradient_checkpointing and self.training, block, x)
        return x

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return `pixel_values` (batch_size, num_channels, image_size, image_size) of normal noise."""
        config = self.config
        image = example_image(config.num_channels, config.image_size, batch_size, float_tensor(self.stem.conv))
        return {"pixel_values": image}
