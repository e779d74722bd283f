"""CLIP: texts, images and, where wanted, sounds as vectors of one space, near each other where they belong together.

Paper: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020.
Public counterpart: `CLIPModel` of transformers (texts and images); equal weights give equal vectors.
Not here: the towers (`clip_towers`), the loss (`nn.contrastive_loss`), the preparation of texts, images and sounds.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.errors import ModelError
from deepseek.models.clip_towers import AudioTower, ImageEncoder, ImageTower, SoundEncoder, TextEncoder, TextTower
from deepseek.models.pretrained.mixin import PretrainedMixin


class CLIPConfig(Config):
    """Sizes of a CLIP."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    text: TextTower = Field(default_factory=TextTower)
    """The text tower."""
    image: ImageTower = Field(default_factory=ImageTower)
    """The image tower."""
    audio: AudioTower | None = None
    """The audio tower; null is none, as in the published models."""
    projection_dim: int = Field(default=512, ge=1, le=1 << 16)
    """Number of values in a vector."""
    logit_scale_init: float = Field(default=math.log(1 / 0.07), ge=-10, le=10)
    """Start of the learned logarithm of the factor on cosines (the temperature's inverse)."""
    gradient_checkpointing: bool = False
    """Compute block activations again in the backward pass: less memory, about a third more time."""


class CLIPOutput(NamedTuple):
    """Vectors of length 1, and the factor on their cosines."""

    text_embeds: Tensor
    """(batch of texts, projection_dim)."""
    image_embeds: Tensor
    """(batch of images, projection_dim)."""
    logit_scale: Tensor
    """A scalar: exp of the learned logarithm."""


class CLIPAudioOutput(NamedTuple):
    """What CLIPOutput has, and the vectors of sounds."""

    text_embeds: Tensor
    """(batch of texts, projection_dim)."""
    image_embeds: Tensor
    """(batch of images, projection_dim)."""
    logit_scale: Tensor
    """A scalar: exp of the learned logarithm."""
    audio_embeds: Tensor
    """(batch of sounds, projection_dim)."""


class CLIP(PretrainedMixin, nn.Module):
    """Texts, images and sounds to vectors of length 1."""

    config: CLIPConfig
    input_axes: ClassVar[dict[str, tuple[str | None, ...]]] = {"input_features": ("batch", None, "frames")}

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.text = TextEncoder(config.text, config.projection_dim)
        self.image = ImageEncoder(config.image, config.projection_dim)
        self.audio = SoundEncoder(config.audio, config.projection_dim) if config.audio is not None else None
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.init_weights()

    def init_weights(self) -> None:
        """Normal weights, smaller with width and, where they add to the stream, with depth; biases of zero."""
        nn.init.constant_(self.logit_scale, self.config.logit_scale_init)
        nn.init.normal_(self.image.class_token, std=self.config.image.d_model**-0.5)
        for tower in (self.text, self.image, self.audio):
            if tower is None:
                continue
            wide = tower.config.d_model**-0.5
            deep = wide * (2 * tower.config.num_layers) ** -0.5
            deviations = {"out": wide, "projection": wide, "up": wide * 2**-0.5}
            for name, module in tower.named_modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=deviations.get(name.rpartition(".")[2], deep))
                elif isinstance(module, nn.Embedding | nn.Conv1d | nn.Conv2d):
                    nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
    ) -> CLIPOutput | CLIPAudioOutput:
        """Return the vectors of texts, images and, with `input_features`, sounds; the batches may differ in size.

        `input_ids` (batch, time) of int64 and `attention_mask` (batch, time), 0 at padding; `pixel_values` (batch,
        num_channels, image_size, image_size), normalised; `input_features` (batch, num_mels, frames), a log-mel
        spectrogram. Raises ModelError for wrong inputs, and for sounds without an audio tower.
        """
        text, image = self.encode_text(input_ids, attention_mask), self.encode_image(pixel_values)
        scale = self.logit_scale.exp()
        if input_features is None:
            return CLIPOutput(text, image, scale)
        return CLIPAudioOutput(text, image, scale, self.encode_audio(input_features))

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return (batch, projection_dim), of length 1."""
        return F.normalize(self.text(input_ids, attention_mask, self._recompute), dim=-1)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Return (batch, projection_dim), of length 1."""
        return F.normalize(self.image(pixel_values, self._recompute), dim=-1)

    def encode_audio(self, input_features: Tensor) -> Tensor:
        """Return (batch, projection_dim), of length 1. Raises ModelError where the model has no audio tower."""
        if self.audio is None:
            raise ModelError("this CLIP hears nothing", found="audio: null", fix="give the config an audio section")
        return F.normalize(self.audio(input_features, self._recompute), dim=-1)

    @property
    def _recompute(self) -> bool:
        return self.config.gradient_checkpointing and self.training

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return `input_ids` (batch_size, up to 16) that end with the end token, `pixel_values`, an `attention_mask`
        of ones and, for a model with an audio tower, `input_features` (batch_size, num_mels, up to 40)."""
        config, generator = self.config, torch.Generator().manual_seed(0)
        text, image, audio = config.text, config.image, config.audio
        ids = torch.randint(text.vocab_size, (batch_size, min(text.max_length, 16)), generator=generator)
        ids[:, -1] = text.vocab_size - 1 if text.eos_id is None else text.eos_id
        pixels = torch.randn(batch_size, image.num_channels, image.image_size, image.image_size, generator=generator)
        inputs = {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}
        if audio is not None:
            frames = min(audio.max_frames, 40)
            inputs["input_features"] = torch.randn(batch_size, audio.num_mels, frames, generator=generator)
        weight = self.image.norm.weight
        return {
            name: tensor.to(weight if tensor.is_floating_point() else weight.device) for name, tensor in inputs.items()
        }
