"""ViT3D: a transformer over the blocks of a volume (a CT or MR scan), read out at the mean of its tokens.

Paper: Dosovitskiy et al. 2021, arXiv:2010.11929, with patches of three sides as in Hatamizadeh et al. 2022, "UNETR:
Transformers for 3D Medical Image Segmentation", arXiv:2103.10504.
Public counterpart: the ViT of MONAI; there is none in transformers.

A CT volume of 512 x 512 x 128 voxels in patches of 16 x 16 x 16 is 32 * 32 * 8 = 8,192 tokens. A block's activations
are then 8,192 * d_model numbers (12 MB at d_model 768 in bfloat16); fused attention never holds the 8,192 x 8,192
scores, and with `gradient_checkpointing` training keeps one such tensor a block. Doubling the sides of a patch divides
the tokens by 8 and attention's work by 64.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.nn.checks import check_floats, check_shape
from deepseek.nn.config_checks import check_heads
from deepseek.nn.dropout import dropout
from deepseek.nn.encoder_block import EncoderBlock
from deepseek.nn.patch_embedding import PatchEmbedding, per_axis, resize_positions
from deepseek.nn.recompute import recomputed


class ViT3DConfig(Config):
    """Sizes of a ViT3D."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing", "interpolate_positions"})

    volume_size: int | list[int] = [128, 512, 512]
    """Sides of the volumes in voxels, [depth, height, width], or one number."""
    patch_size: int | list[int] = 16
    """Sides of a patch in voxels, [depth, height, width], or one number; zeros fill a volume up to whole patches."""
    num_channels: int = Field(default=1, ge=1, le=4096)
    """Channels of a volume."""
    num_labels: int = Field(default=2, ge=1, le=1 << 20)
    """Number of classes, which is the number of logits."""
    num_layers: int = Field(default=12, ge=1, le=1024)
    """Number of transformer blocks."""
    d_model: int = Field(default=768, ge=1, le=1 << 16)
    """Width of the residual stream."""
    num_heads: int = Field(default=12, ge=1, le=1024)
    """Attention heads; they divide d_model."""
    d_ff: int | None = Field(default=None, ge=1, le=1 << 18)
    """Width inside the feed-forward layers; null is 4 * d_model."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of activations set to zero in training."""
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of attention weights set to zero in training."""
    norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the variance in layer norms."""
    interpolate_positions: bool = False
    """Take volumes of other sizes than volume_size: the position vectors are interpolated (trilinear)."""
    gradient_checkpointing: bool = False
    """Compute block activations again in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> ViT3DConfig:
        check_heads(self.d_model, self.num_heads)
        for name in ("volume_size", "patch_size"):
            value = getattr(self, name)
            if isinstance(value, list) and len(value) != 3:
                raise ValueError(f"{name} {value} must be one number, or three: [depth, height, width]")
            if min(per_axis(value, 3)) < 1:
                raise ValueError(f"{name} {value} must be 1 or more")
        return self

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of patches along depth, height and width; their product is the number of tokens."""
        sizes, patch = per_axis(self.volume_size, 3), per_axis(self.patch_size, 3)
        return tuple(math.ceil(size / side) for size, side in zip(sizes, patch, strict=True))


class ViT3D(nn.Module):
    """Volumes to class logits."""

    config: ViT3DConfig

    def __init__(self, config: ViT3DConfig) -> None:
        super().__init__()
        self.config = config
        d_model = config.d_model
        self.patch_embedding = PatchEmbedding(config.num_channels, d_model, per_axis(config.patch_size, 3), pad=True)
        self.position_embedding = nn.Parameter(torch.empty(1, math.prod(config.grid), d_model))
        self.blocks = nn.ModuleList(
            EncoderBlock(
                d_model,
                config.num_heads,
                config.d_ff or 4 * d_model,
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
            if isinstance(module, nn.Linear | nn.Conv3d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.position_embedding, std=0.02)

    def forward(self, volume: Tensor) -> Tensor:
        """Return logits (batch, num_labels) for `volume` (batch, num_channels, depth, height, width), normalised.

        Raises ModelError for another rank, channel count or size.
        """
        logits: Tensor = self.classifier(self.forward_features(volume).mean(dim=1))
        return logits

    def forward_features(self, volume: Tensor) -> Tensor:
        """Return (batch, tokens, d_model), normalised: patches by depth, then height, then width."""
        self._check(volume)
        x = self.patch_embedding(volume.to(self.norm.weight.dtype))
        grid = x.shape[1:4]
        x = x.flatten(1, 3) + resize_positions(self.position_embedding, self.config.grid, grid)
        if self.config.dropout:
            x = dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            x = recomputed(self.config.gradient_checkpointing and self.training, block, x)
        features: Tensor = self.norm(x)
        return features

    def _check(self, volume: Tensor) -> None:
        config = self.config
        sizes = ("depth", "height", "width") if config.interpolate_positions else per_axis(config.volume_size, 3)
        check_shape("volume", volume, ("batch", config.num_channels, *sizes))
        check_floats(
            "volume", volume, "for CT: clip the Hounsfield units to a window, then scale them to about -1 to 1"
        )

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return inputs of the right names and shapes: `volume` (batch_size, num_channels, depth, height, width)."""
        generator = torch.Generator().manual_seed(0)
        shape = (batch_size, self.config.num_channels, *per_axis(self.config.volume_size, 3))
        return {"volume": torch.randn(shape, generator=generator).to(self.norm.weight)}
