"""Swin: a transformer in four stages whose attention stays inside windows, shifted from block to block.

Paper: Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", arXiv:2103.14030.
Public counterpart: `SwinForImageClassification` of transformers; equal weights give equal logits.
Not here: absolute position vectors (an option no published size uses), Swin V2.

`torch.compile(dynamic=True)` traces one graph for all sizes (and one for squares), which other backends run. Inductor's
generator of C++ is not done with it after minutes (torch 2.13): it simplifies formulas of nested sizes without end. For
it give `dynamic=False`, which makes one program for each size. Batches may vary either way.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.models.pretrained.mixin import PretrainedMixin
from deepseek.nn.config_checks import check_heads
from deepseek.nn.dropout import dropout
from deepseek.nn.encoder_block import MLP
from deepseek.nn.image_input import check_image
from deepseek.nn.patch_embedding import PatchEmbedding
from deepseek.nn.recompute import recomputed
from deepseek.nn.stochastic_depth import StochasticDepth, linear_rates
from deepseek.nn.window_attention import WindowAttention, WindowLayout, window_layout


class SwinConfig(Config):
    """Sizes of a Swin."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    image_size: int = Field(default=224, ge=1, le=1 << 16)
    """Side in pixels of the images the model is meant for (its example images); it takes images of every size."""
    patch_size: int = Field(default=4, ge=1, le=1024)
    """Side of a patch in pixels; zeros fill an image up to whole patches."""
    num_channels: int = Field(default=3, ge=1, le=4096)
    """Colour channels of an image."""
    num_labels: int = Field(default=1000, ge=1, le=1 << 20)
    """Number of classes, which is the number of logits."""
    width: int = Field(default=96, ge=1, le=1 << 16)
    """Channels in the first stage; each further stage has twice as many."""
    depths: list[int] = Field(default=[2, 2, 6, 2], min_length=1, max_length=16)
    """Blocks in each stage; every second one shifts its windows."""
    num_heads: list[int] = Field(default=[3, 6, 12, 24], min_length=1, max_length=16)
    """Attention heads in each stage."""
    window_size: int = Field(default=7, ge=1, le=1024)
    """Side of a window, in patches."""
    ff_ratio: float = Field(default=4.0, gt=0, le=64)
    """Width inside the feed-forward layers, in multiples of the stage's channels."""
    qkv_bias: bool = True
    """Biases in the projections to queries, keys and values."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of activations set to zero in training."""
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of attention weights set to zero in training."""
    stochastic_depth: float = Field(default=0.1, ge=0, lt=1)
    """Share of samples for which the last block is left out in training; rises evenly from 0 at the first block."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the variance in layer norms."""
    gradient_checkpointing: bool = False
    """Compute block activations again in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _stages_fit(self) -> SwinConfig:
        stages = len(self.depths)
        if len(self.num_heads) != stages:
            raise ValueError(
                f"num_heads {self.num_heads} names {len(self.num_heads)} stages, depths {self.depths} names {stages}; "
                f"nearest that fits: num_heads of {stages} numbers"
            )
        if min(self.depths) < 1 or min(self.num_heads) < 1:
            raise ValueError(f"depths {self.depths} and num_heads {self.num_heads} must be 1 or more")
        for stage, heads in enumerate(self.num_heads):
            check_heads(self.width << stage, heads, f"the width in stage {stage},")
        return self


class SwinBlock(nn.Module):
    """Window attention, then feed-forward, each on a normalised input and added to it."""

    def __init__(self, config: SwinConfig, stage: int, *, shifted: bool, rate: float) -> None:
        super().__init__()
        channels = config.width << stage
        self.dropout = config.dropout
        self.attention_norm = nn.LayerNorm(channels, eps=config.norm_eps)
        self.attention = WindowAttention(
            channels,
            config.num_heads[stage],
            config.window_size,
            shifted=shifted,
            qkv_bias=config.qkv_bias,
            dropout=config.attention_dropout,
        )
        self.feed_forward_norm = nn.LayerNorm(channels, eps=config.norm_eps)
        self.feed_forward = MLP(channels, int(config.ff_ratio * channels), dropout=config.dropout)
        self.stochastic_depth = StochasticDepth(rate)

    def forward(self, x: Tensor, layout: WindowLayout) -> Tensor:
        """Return a map of x's shape (batch, height, width, channels)."""
        seen = self.attention(self.attention_norm(x), layout)
        if self.dropout:
            seen = dropout(seen, self.dropout, self.training)
        x = x + self.stochastic_depth(seen)
        out: Tensor = x + self.stochastic_depth(self.feed_forward(self.feed_forward_norm(x)))
        return out


class PatchMerging(nn.Module):
    """Halves a map: two by two places become one of twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, ceil(height / 2), ceil(width / 2), 2 * channels) for x (batch, height, width, channels)."""
        height, width = x.shape[1:3]
        rows, columns = (height + 1) // 2, (width + 1) // 2
        x = F.pad(x, (0, 0, 0, 2 * columns - width, 0, 2 * rows - height))
        x = x.reshape(x.shape[0], rows, 2, columns, 2, x.shape[3])
        corners = x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # column by column, as in the published weights
        merged: Tensor = self.reduction(self.norm(corners))
        return merged


class Swin(PretrainedMixin, nn.Module):
    """Images to class logits."""

    config: SwinConfig

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.config = config
        rates = iter(linear_rates(config.stochastic_depth, sum(config.depths)))
        last = config.width << (len(config.depths) - 1)
        self.patch_embedding = PatchEmbedding(config.num_channels, config.width, (config.patch_size,) * 2, pad=True)
        self.patch_norm = nn.LayerNorm(config.width)
        self.stages = nn.ModuleList(
            nn.ModuleList(SwinBlock(config, stage, shifted=index % 2 == 1, rate=next(rates)) for index in range(depth))
            for stage, depth in enumerate(config.depths)
        )
        self.merging = nn.ModuleList(PatchMerging(config.width << stage) for stage in range(len(config.depths) - 1))
        self.norm = nn.LayerNorm(last, eps=config.norm_eps)
        self.classifier = nn.Linear(last, config.num_labels)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal weights and position biases of deviation 0.02, other biases of zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                nn.init.trunc_normal_(module.bias_table, std=0.02)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return logits (batch, num_labels) for `pixel_values` (batch, num_channels, height, width), normalised.

        Raises ModelError for another rank or channel count.
        """
        logits: Tensor = self.classifier(self.forward_features(pixel_values).mean(dim=(1, 2)))
        return logits

    def forward_features(self, pixel_values: Tensor) -> Tensor:
        """Return the last stage's map (batch, height, width, channels), normalised: 1/32 of the sides for 4 stages."""
        check_image("pixel_values", pixel_values, self.config.num_channels)
        x = self.patch_norm(self.patch_embedding(pixel_values.to(self.norm.weight.dtype)))
        if self.config.dropout:
            x = dropout(x, self.config.dropout, self.training)
        for index, stage in enumerate(self.stages):
            if index:
                x = self.merging[index - 1](x)
            layout = window_layout((x.shape[1], x.shape[2]), self.config.window_size, x.device)
            for block in stage.children():
                x = recomputed(self.config.gradient_checkpointing and self.training, block, x, layout)
        features: Tensor = self.norm(x)
        return features

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return inputs of the right names and shapes: `pixel_values` (batch_size, num_channels, side, side)."""
        side = self.config.image_size
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn((batch_size, self.config.num_channels, side, side), generator=generator)
        return {"pixel_values": pixels.to(self.norm.weight)}
