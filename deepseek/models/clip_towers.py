"""The towers of CLIP: a text, an image or a sound each to one vector, not yet of length 1. The whole is in `clip`.

Papers: Radford et al. 2021, arXiv:2103.00020, section 2.4 (text and image); Elizalde et al. 2022, "CLAP: Learning
Audio Concepts from Natural Language Supervision", arXiv:2206.04769 (an audio tower in the same space), here with
Whisper's encoder (arXiv:2212.04356) and the mean over its frames.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.nn.activations import ACTIVATIONS
from deepseek.nn.audio_encoder import AudioEncoder
from deepseek.nn.checks import check_floats, check_ids, check_mask, check_shape
from deepseek.nn.config_checks import check_heads, check_in_vocabulary
from deepseek.nn.encoder_block import EncoderBlock
from deepseek.nn.masks import causal_mask, padding_mask
from deepseek.nn.recompute import recomputed


class TowerConfig(Config):
    """Sizes that all towers have."""

    num_layers: int = Field(default=12, ge=1, le=1024)
    """Number of transformer blocks."""
    d_model: int = Field(default=512, ge=1, le=1 << 16)
    """Width of the residual stream."""
    num_heads: int = Field(default=8, ge=1, le=1024)
    """Attention heads; they divide d_model."""
    d_ff: int | None = Field(default=None, ge=1, le=1 << 18)
    """Width inside the feed-forward layers; null is 4 * d_model."""
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """Activation of the feed-forward layers: x * sigmoid(1.702 x), or the exact GELU."""
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of attention weights set to zero in training."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the variance in layer norms."""

    @model_validator(mode="after")
    def _heads_fit(self) -> TowerConfig:
        check_heads(self.d_model, self.num_heads)
        return self


class TextTower(TowerConfig):
    """Sizes of the text tower."""

    vocab_size: int = Field(default=49408, ge=2, le=1 << 24)
    """Number of tokens the model knows; at least the tokenizer's."""
    max_length: int = Field(default=77, ge=1, le=1 << 20)
    """Longest text, in tokens."""
    eos_id: int | None = Field(default=None, ge=0)
    """Token at whose first place a text is read out; null takes the place of the highest token number, which is the
    end token in the published vocabulary."""

    @model_validator(mode="after")
    def _end_is_known(self) -> TextTower:
        check_in_vocabulary(self.vocab_size, eos_id=self.eos_id)
        return self


class ImageTower(TowerConfig):
    """Sizes of the image tower."""

    d_model: int = Field(default=768, ge=1, le=1 << 16)
    """Width of the residual stream."""
    num_heads: int = Field(default=12, ge=1, le=1024)
    """Attention heads; they divide d_model."""
    image_size: int = Field(default=224, ge=1, le=1 << 14)
    """Side of the images in pixels."""
    patch_size: int = Field(default=32, ge=1, le=1 << 12)
    """Side of a patch in pixels; what is left over at the image's edge is not looked at."""
    num_channels: int = Field(default=3, ge=1, le=4096)
    """Colour channels of an image."""

    @model_validator(mode="after")
    def _patches_fit(self) -> ImageTower:
        if self.patch_size > self.image_size:
            raise ValueError(
                f"patch_size {self.patch_size} is larger than image_size {self.image_size}; "
                f"nearest that fits: patch_size {self.image_size}"
            )
        return self


class AudioTower(Config):
    """Sizes of the audio tower."""

    num_layers: int = Field(default=6, ge=1, le=1024)
    """Number of transformer blocks."""
    d_model: int = Field(default=512, ge=2, le=1 << 16)
    """Width of the residual stream; even."""
    num_heads: int = Field(default=8, ge=1, le=1024)
    """Attention heads; they divide d_model."""
    d_ff: int | None = Field(default=None, ge=1, le=1 << 18)
    """Width inside the feed-forward layers; null is 4 * d_model."""
    num_mels: int = Field(default=80, ge=1, le=1024)
    """Frequency bands of the log-mel spectrogram."""
    max_frames: int = Field(default=1000, ge=1, le=1 << 20)
    """Longest recording, in frames of the spectrogram."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of activations set to zero in training."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> AudioTower:
        if self.d_model % 2:
            raise ValueError(
                f"d_model {self.d_model} is odd, and waves come in pairs; nearest that fits: d_model {self.d_model + 1}"
            )
        check_heads(self.d_model, self.num_heads)
        return self


def _blocks(config: TowerConfig) -> nn.ModuleList:
    return nn.ModuleList(
        EncoderBlock(
            config.d_model,
            config.num_heads,
            config.d_ff or 4 * config.d_model,
            attention_dropout=config.attention_dropout,
            norm_eps=config.norm_eps,
            activation=ACTIVATIONS[config.activation],
        )
        for _ in range(config.num_layers)
    )


class TextEncoder(nn.Module):
    """A causal transformer over tokens, read out where the text ends."""

    def __init__(self, config: TextTower, projection_dim: int) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.max_length, config.d_model)
        self.blocks = _blocks(config)
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.projection = nn.Linear(config.d_model, projection_dim, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, checkpointing: bool) -> Tensor:
        """Return (batch, projection_dim) for `input_ids` (batch, time) and `attention_mask` (batch, time)."""
        check_ids("input_ids", input_ids, self.config.vocab_size, self.config.max_length)
        check_mask("attention_mask", attention_mask, input_ids.shape)
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        mask = causal_mask(input_ids.shape[1], 0, input_ids.device)
        if attention_mask is not None:
            mask = mask & padding_mask(attention_mask)
        x = self.token_embedding(input_ids) + self.position_embedding(position)
        for block in self.blocks:
            x = recomputed(checkpointing, block, x, mask)
        eos = self.config.eos_id
        end = input_ids.argmax(-1) if eos is None else (input_ids == eos).int().argmax(-1)
        read_out = x[torch.arange(x.shape[0], device=x.device), end]
        vector: Tensor = self.projection(self.norm(read_out))
        return vector


class ImageEncoder(nn.Module):
    """A transformer over the patches of an image, read out at a class token."""

    def __init__(self, config: ImageTower, projection_dim: int) -> None:
        super().__init__()
        self.config = config
        width, patch = config.d_model, config.patch_size
        self.class_token = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, kernel_size=patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(1 + (config.image_size // patch) ** 2, width)
        self.input_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.blocks = _blocks(config)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.projection = nn.Linear(width, projection_dim, bias=False)

    def forward(self, pixel_values: Tensor, checkpointing: bool) -> Tensor:
        """Return (batch, projection_dim) for `pixel_values` (batch, num_channels, image_size, image_size)."""
        side = self.config.image_size
        check_shape("pixel_values", pixel_values, ("batch", self.config.num_channels, side, side))
        check_floats("pixel_values", pixel_values)
        patches = self.patch_embedding(pixel_values.to(self.norm.weight.dtype)).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(patches.shape[0], 1, -1), patches], dim=1)
        x = self.input_norm(x + self.position_embedding(torch.arange(x.shape[1], device=x.device)))
        for block in self.blocks:
            x = recomputed(checkpointing, block, x)
        vector: Tensor = self.projection(self.norm(x[:, 0]))
        return vector


class SoundEncoder(nn.Module):
    """A transformer over a log-mel spectrogram, read out as the mean of its frames."""

    def __init__(self, config: AudioTower, projection_dim: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = AudioEncoder(
            config.num_mels,
            config.max_frames,
            config.d_model,
            config.num_heads,
            config.d_ff or 4 * config.d_model,
            config.num_layers,
            config.dropout,
        )
        self.projection = nn.Linear(config.d_model, projection_dim, bias=False)

    def forward(self, input_features: Tensor, checkpointing: bool) -> Tensor:
        """Return (batch, projection_dim) for `input_features` (batch, num_mels, frames)."""
        vector: Tensor = self.projection(self.encoder(input_features, checkpointing).mean(dim=1))
        return vector
