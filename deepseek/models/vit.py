"""ViT: a transformer over the patches of an image, read out at a class token.

Paper: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
arXiv:2010.11929.
Public counterpart: `ViTForImageClassification` of transformers; equal weights give equal logits.
Not here: distillation tokens (DeiT), masked pre-training, volumes (`vit3d`).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.models.pretrained.mixin import PretrainedMixin
from deepseek.nn.checks import check_shape
from deepseek.nn.config_checks import check_heads
from deepseek.nn.dropout import dropout
from deepseek.nn.encoder_block import EncoderBlock
from deepseek.nn.image_input import check_image
from deepseek.nn.patch_embedding import PatchEmbedding, per_axis, resize_positions
from deepseek.nn.recompute import recomputed


class ViTConfig(Config):
    """Sizes of a ViT."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing", "interpolate_positions"})

    image_size: int | list[int] = 224
    """Side of the images in pixels, or [height, width]."""
    patch_size: int | list[int] = 16
    """Side of a patch in pixels, or [height, width]; what is left over at the image's edge is not looked at."""
    num_channels: int = Field(default=3, ge=1, le=4096)
    """Colour channels of an image."""
    num_labels: int = Field(default=1000, ge=1, le=1 << 20)
    """Number of classes, which is the number of logits."""
    num_layers: int = Field(default=12, ge=1, le=1024)
    """Number of transformer blocks."""
    d_model: int = Field(default=768, ge=1, le=1 << 16)
    """Width of the residual stream."""
    num_heads: int = Field(default=12, ge=1, le=1024)
    """Attention heads; they divide d_model."""
    d_ff: int | None = Field(default=None, ge=1, le=1 << 18)
    """Width inside the feed-forward layers; null is 4 * d_model."""
    qkv_bias: bool = True
    """Biases in the projections to queries, keys and values."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of activations set to zero in training."""
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of attention weights set to zero in training."""
    norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the variance in layer norms."""
    interpolate_positions: bool = False
    """Take images of other sizes than image_size: the position vectors are interpolated (bicubic)."""
    gradient_checkpointing: bool = False
    """Compute block activations again in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> ViTConfig:
        check_heads(self.d_model, self.num_heads)
        for name in ("image_size", "patch_size"):
            value = getattr(self, name)
            if isinstance(value, list) and len(value) != 2:
                raise ValueError(f"{name} {value} must be one number, or two: [height, width]")
            if min(per_axis(value, 2)) < 1:
                raise ValueError(f"{name} {value} must be 1 or more")
        if min(self.grid) < 1:
            raise ValueError(
                f"patch_size {self.patch_size} is larger than image_size {self.image_size}; "
                f"nearest that fits: patch_size {min(per_axis(self.image_size, 2))}"
            )
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patches in an image's height and width."""
        (height, width), patch = per_axis(self.image_size, 2), per_axis(self.patch_size, 2)
        return height // patch[0], width // patch[1]


class ViT(PretrainedMixin, nn.Module):
    """Images to class logits."""

    config: ViTConfig

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        d_model, (rows, columns) = config.d_model, config.grid
        self.patch_embedding = PatchEmbedding(config.num_channels, d_model, per_axis(config.patch_size, 2))
        self.class_token = nn.Parameter(torch.empty(1, 1, d_model))
        self.position_embedding = nn.Parameter(torch.empty(1, 1 + rows * columns, d_model))
        self.blocks = nn.ModuleList(
            EncoderBlock(
                d_model,
                config.num_heads,
                config.d_ff or 4 * d_model,
                qkv_bias=config.qkv_bias,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                norm_eps=config.norm_eps,
            )
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(d_model, eps=config.norm_eps)
        self.classifier = nn.Linear(d_model, config.num_labels)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal weights of deviation 0.02, biases of zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.position_embedding, std=0.02)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return logits (batch, num_labels) for `pixel_values` (batch, num_channels, height, width), normalised.

        Raises ModelError for another rank, channel count or image size.
        """
        logits: Tensor = self.classifier(self.forward_features(pixel_values)[:, 0])
        return logits

    def forward_features(self, pixel_values: Tensor) -> Tensor:
        """Return (batch, 1 + patches, d_model), normalised: the class token, then the patches row by row."""
        self._check(pixel_values)
        x = self.patch_embedding(pixel_values.to(self.norm.weight.dtype))
        grid = x.shape[1:3]
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x.flatten(1, 2)], dim=1)
        x = x + self._positions(grid)
        if self.config.dropout:
            x = dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            x = recomputed(self.config.gradient_checkpointing and self.training, block, x)
        features: Tensor = self.norm(x)
        return features

    def _positions(self, grid: torch.Size) -> Tensor:
        if tuple(grid) == self.config.grid:
            return self.position_embedding
        first, patches = self.position_embedding[:, :1], self.position_embedding[:, 1:]
        return torch.cat([first, resize_positions(patches, self.config.grid, grid)], dim=1)

    def _check(self, pixel_values: Tensor) -> None:
        config = self.config
        check_image("pixel_values", pixel_values, config.num_channels, minimum=max(per_axis(config.patch_size, 2)))
        if not config.interpolate_positions:
            check_shape("pixel_values", pixel_values, ("batch", config.num_channels, *per_axis(config.image_size, 2)))

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return inputs of the right names and shapes: `pixel_values` (batch_size, num_channels, height, width)."""
        generator = torch.Generator().manual_seed(0)
        shape = (batch_size, self.config.num_channels, *per_axis(self.config.image_size, 2))
        return {"pixel_values": torch.randn(shape, generator=generator).to(self.norm.weight)}
