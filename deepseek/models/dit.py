"""DiT: a transformer over the patches of a noisy image (or of its latents) that predicts the noise in it.

Paper: Peebles and Xie 2023, "Scalable Diffusion Models with Transformers", arXiv:2212.09748 (the adaLN-zero form).
Public counterpart: the authors' code at https://github.com/facebookresearch/DiT.
Not here: noise schedules, training targets, samplers and guidance (`diffusion`), the encoder to latents.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.errors import ModelError
from deepseek.nn.adaptive_norm import AdaptiveBlock, AdaptiveNorm
from deepseek.nn.checks import check_shape
from deepseek.nn.config_checks import check_heads
from deepseek.nn.float_tensor import float_tensor
from deepseek.nn.image_input import check_image
from deepseek.nn.patch_embedding import PatchEmbedding, patches_to_pixels, sincos_positions
from deepseek.nn.recompute import recomputed

_FREQUENCIES = 256  # size of a time's sine and cosine features


class DiTConfig(Config):
    """Sizes of a DiT."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    latent_size: int = Field(default=32, ge=1, le=1 << 14)
    """Side of the latents (or images) the model is meant for; it takes every multiple of patch_size."""
    patch_size: int = Field(default=2, ge=1, le=1024)
    """Side of a patch; it divides latent_size."""
    num_channels: int = Field(default=4, ge=1, le=4096)
    """Channels of the latents (or images)."""
    num_classes: int = Field(default=1000, ge=0, le=1 << 24)
    """Number of classes an image can be asked for; 0 for a model without labels."""
    null_class: bool = True
    """One more class, of number num_classes, stands for "any": classifier-free guidance needs it."""
    num_layers: int = Field(default=28, ge=1, le=1024)
    """Number of transformer blocks."""
    d_model: int = Field(default=1152, ge=4, le=1 << 16)
    """Width of the residual stream, a multiple of 4."""
    num_heads: int = Field(default=16, ge=1, le=1024)
    """Attention heads; they divide d_model."""
    d_ff: int | None = Field(default=None, ge=1, le=1 << 18)
    """Width inside the feed-forward layers; null is 4 * d_model."""
    learn_sigma: bool = True
    """Predict, after the noise, as many channels that say how much noise a step back adds (arXiv:2102.09672)."""
    timestep_scale: float = Field(default=1.0, gt=0, le=1e6)
    """What timesteps are multiplied by: 1 for steps of 0 to 999, 1000 for flow matching with times of 0 to 1."""
    gradient_checkpointing: bool = False
    """Compute block activations again in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> DiTConfig:
        check_heads(self.d_model, self.num_heads)
        if self.d_model % 4:
            raise ValueError(
                f"d_model {self.d_model} is no multiple of 4, as the positions need; "
                f"nearest that fits: d_model {max(4, round(self.d_model / 4) * 4)}"
            )
        if self.latent_size % self.patch_size:
            nearest = max(1, round(self.latent_size / self.patch_size)) * self.patch_size
            raise ValueError(
                f"latent_size {self.latent_size} is no multiple of patch_size {self.patch_size}; "
                f"nearest that fits: latent_size {nearest}"
            )
        if not self.num_classes and not self.null_class:
            raise ValueError("num_classes 0 leaves no class at all; nearest that fits: null_class true")
        return self

    @property
    def out_channels(self) -> int:
        """Channels of the prediction."""
        return self.num_channels * (2 if self.learn_sigma else 1)


class TimestepEmbedding(nn.Module):
    """A time as a vector: sines and cosines of many frequencies, then two linear layers."""

    def __init__(self, d_model: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.up = nn.Linear(_FREQUENCIES, d_model)
        self.down = nn.Linear(d_model, d_model)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (batch, d_model) in `dtype` for `timesteps` (batch,), whole or fractional."""
        half = _FREQUENCIES // 2
        steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
        frequencies = torch.exp(steps * (-math.log(10000.0) / half))
        angles = (timesteps.float() * self.scale)[:, None] * frequencies
        out: Tensor = self.down(F.silu(self.up(torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype))))
        return out


class DiT(nn.Module):
    """Noisy latents, their times and labels to a prediction of the latents' shape."""

    config: DiTConfig

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        d_model, patch = config.d_model, config.patch_size
        self.patch_embedding = PatchEmbedding(config.num_channels, d_model, (patch, patch))
        self.timestep_embedding = TimestepEmbedding(d_model, config.timestep_scale)
        self.label_embedding = nn.Embedding(config.num_classes + int(config.null_class), d_model)
        self.blocks = nn.ModuleList(
            AdaptiveBlock(d_model, config.num_heads, config.d_ff or 4 * d_model) for _ in range(config.num_layers)
        )
        self.norm = AdaptiveNorm(d_model)
        self.output = nn.Linear(d_model, patch * patch * config.out_channels)
        self.init_weights()

    def init_weights(self) -> None:
        """Glorot weights, embeddings of deviation 0.02; modulations and output, so the prediction as well, are zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.detach().flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.label_embedding.weight, std=0.02)
        nn.init.normal_(self.timestep_embedding.up.weight, std=0.02)
        nn.init.normal_(self.timestep_embedding.down.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, AdaptiveNorm):
                module.init_zero()
        nn.init.zeros_(self.output.weight)

    def forward(self, latents: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return (batch, out_channels, height, width) for `latents` (batch, num_channels, height, width).

        `timesteps` (batch,): steps or times, whole or fractional; `labels` (batch,) of int64, None: the null class.
        With `learn_sigma` the first num_channels are the noise, the others the variance's place between its bounds.
        Raises ModelError for another shape, sides that patches don't fill, and unknown labels.
        """
        labels = self._check(latents, timesteps, labels)
        patches = self.patch_embedding(latents.to(float_tensor(self.output).dtype))
        grid = patches.shape[1:3]
        positions = sincos_positions(grid, self.config.d_model, latents.device).to(patches.dtype)
        x = patches.flatten(1, 2) + positions
        condition = self.timestep_embedding(timesteps, x.dtype) + self.label_embedding(labels)
        for block in self.blocks:
            x = recomputed(self.config.gradient_checkpointing and self.training, block, x, condition)
        patch = self.config.patch_size
        return patches_to_pixels(self.output(self.norm(x, condition)), grid, (patch, patch))

    def _check(self, latents: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        """Return the labels, the null class where there are none."""
        config = self.config
        check_image("latents", latents, config.num_channels)
        batch = latents.shape[0]
        if labels is None:
            if not config.null_class:
                raise ModelError("labels are missing", found="None", wanted="(batch,) of int64: no null class")
            labels = torch.full((batch,), config.num_classes, device=latents.device)
        if torch.compiler.is_compiling():
            return labels
        if latents.shape[2] % config.patch_size or latents.shape[3] % config.patch_size:
            raise ModelError(
                "latents can't be cut into whole patches",
                found=tuple(latents.shape[2:]),
                wanted=f"multiples of patch_size = {config.patch_size}",
            )
        check_shape("timesteps", timesteps, (batch,))
        check_shape("labels", labels, (batch,))
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise ModelError("labels must hold class numbers", found=labels.dtype, wanted="int64")
        highest = self.label_embedding.num_embeddings - 1
        if labels.device.type == "cpu" and labels.numel() and type(labels) is Tensor:
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high > highest:
                raise ModelError("labels has an unknown class", found=f"{low} to {high}", wanted=f"0 to {highest}")
        return labels

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return inputs of the right names and shapes: `latents`, `timesteps` and `labels`."""
        config, generator = self.config, torch.Generator().manual_seed(0)
        shape = (batch_size, config.num_channels, config.latent_size, config.latent_size)
        weight = float_tensor(self.output)
        inputs = {
            "latents": torch.randn(shape, generator=generator).to(weight),
            "timesteps": torch.randint(1000, (batch_size,), generator=generator) / config.timestep_scale,
            "labels": torch.randint(max(1, config.num_classes), (batch_size,), generator=generator),
        }
        return {name: tensor.to(weight.device) for name, tensor in inputs.items()}
