"""ConvNeXt: a convolutional network with the design of a vision transformer.

Paper: Liu et al. 2022, "A ConvNet for the 2020s", arXiv:2201.03545.
Public counterpart: `ConvNextForImageClassification` of transformers; equal weights give equal logits.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.models.pretrained.mixin import PretrainedMixin
from deepseek.nn.channels_first_norm import ChannelsFirstLayerNorm
from deepseek.nn.image_input import check_image, example_image
from deepseek.nn.recompute import recomputed
from deepseek.nn.stochastic_depth import StochasticDepth, linear_rates

NORM_EPS = 1e-6
"""Added to the variance in all layer norms but the last."""


class ConvNeXtConfig(Config):
    """Sizes of a ConvNeXt."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    num_channels: int = Field(default=3, ge=1, le=4096)
    """Channels of an image."""
    num_labels: int = Field(default=1000, ge=1, le=1 << 24)
    """Number of classes."""
    image_size: int = Field(default=224, ge=1, le=1 << 14)
    """Height and width the sizes are meant for; any other of at least `stride` works."""
    patch_size: int = Field(default=4, ge=1, le=1024)
    """Pixels of an image side that the first convolution makes one of."""
    depths: list[Annotated[int, Field(ge=1, le=1024)]] = Field(default=[3, 3, 9, 3], min_length=1, max_length=16)
    """Blocks in each stage."""
    hidden_sizes: list[Annotated[int, Field(ge=1, le=1 << 16)]] = Field(
        default=[96, 192, 384, 768], min_length=1, max_length=16
    )
    """Channels of each stage."""
    layer_scale: float = Field(default=1e-6, ge=0, le=1)
    """Start of the learned factor on each block's result; 0 leaves the factor out."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Share of samples for which the last block is left out in training; rises from 0 at the first."""
    norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the variance in the last layer norm."""
    gradient_checkpointing: bool = False
    """Compute block activations again in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _stages_fit(self) -> ConvNeXtConfig:
        if len(self.depths) != len(self.hidden_sizes):
            raise ValueError(
                f"depths has {len(self.depths)} stages and hidden_sizes {len(self.hidden_sizes)}; "
                f"nearest that fits: depths {(self.depths + self.depths[-1:] * 16)[: len(self.hidden_sizes)]}"
            )
        return self

    @property
    def stride(self) -> int:
        """How many pixels of an image side make one of the last feature map."""
        return self.patch_size << (len(self.depths) - 1)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, layer norm, a feed-forward layer of four times the width, a learned factor; added to the input."""

    def __init__(self, channels: int, layer_scale: float, drop_rate: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.up = nn.Linear(channels, 4 * channels)
        self.down = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.empty(channels)) if layer_scale > 0 else None
        self.drop = StochasticDepth(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of x's shape (batch, channels, height, width)."""
        inside = self.depthwise(x).permute(0, 2, 3, 1)
        inside = self.down(F.gelu(self.up(self.norm(inside))))
        if self.scale is not None:
            inside = self.scale * inside
        out: Tensor = x + self.drop(inside.permute(0, 3, 1, 2))
        return out


class ConvNeXt(PretrainedMixin, nn.Module):
    """Images to class logits."""

    config: ConvNeXtConfig

    def __init__(self, config: ConvNeXtConfig) -> None:
        super().__init__()
        self.config = config
        sizes = config.hidden_sizes
        factors = [config.patch_size, *[2] * (len(sizes) - 1)]
        self.downsampling = nn.ModuleList(
            _downsampling(before, after, factor, norm_first=index > 0)
            for index, (before, after, factor) in enumerate(
                zip([config.num_channels, *sizes[:-1]], sizes, factors, strict=True)
            )
        )
        rates = iter(linear_rates(config.drop_path, sum(config.depths)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(size, config.layer_scale, next(rates)) for _ in range(depth)))
            for depth, size in zip(config.depths, sizes, strict=True)
        )
        self.norm = nn.LayerNorm(sizes[-1], eps=config.norm_eps)
        self.classifier = nn.Linear(sizes[-1], config.num_labels)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal weights of deviation 0.02, biases of zero, factors of `layer_scale`."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, ConvNeXtBlock) and module.scale is not None:
                nn.init.constant_(module.scale, self.config.layer_scale)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return logits (batch, num_labels) for `pixel_values` (batch, num_channels, height, width), floats.

        Raises ModelError for other shapes and number formats, and for images smaller than `config.stride`.
        """
        logits: Tensor = self.classifier(self.norm(self.forward_features(pixel_values).mean((2, 3))))
        return logits

    def forward_features(self, pixel_values: Tensor) -> Tensor:
        """Return the last feature map: (batch, hidden_sizes[-1], height / config.stride, width / config.stride)."""
        config = self.config
        check_image("pixel_values", pixel_values, config.num_channels, config.stride)
        x = pixel_values.to(self.norm.weight.dtype)
        for downsampling, stage in zip(self.downsampling, self.stages, strict=True):
            x = downsampling(x)
            for block in stage:  # type: ignore[attr-defined]
                x = recomputed(config.gradient_checkpointing and self.training, block, x)
        return x

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return `pixel_values` (batch_size, num_channels, image_size, image_size) of normal noise."""
        config = self.config
        image = example_image(config.num_channels, config.image_size, batch_size, self.norm.weight)
        return {"pixel_values": image}


def _downsampling(before: int, after: int, factor: int, *, norm_first: bool) -> nn.Sequential:
    """A convolution over patches of `factor` x `factor` pixels, and a layer norm before or after it."""
    conv = nn.Conv2d(before, after, factor, factor)
    norm = ChannelsFirstLayerNorm(before if norm_first else after, eps=NORM_EPS)
    return nn.Sequential(norm, conv) if norm_first else nn.Sequential(conv, norm)
