"""Whisper: speech to text, an encoder over a log-mel spectrogram and a decoder that writes tokens.

Paper: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", arXiv:2212.04356.
Public counterpart: `WhisperForConditionalGeneration` of transformers; equal weights give equal logits.
Not here: the spectrogram, timestamps, recordings longer than one window (30 s).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.errors import ModelError
from deepseek.models.generation import LogitsProcessor, SamplingConfig
from deepseek.models.pretrained.mixin import PretrainedMixin
from deepseek.models.seq2seq_generation import CachedDecoder, check_answers, decoded, evaluating
from deepseek.nn.audio_encoder import AudioEncoder
from deepseek.nn.checks import check_ids
from deepseek.nn.config_checks import check_heads, check_in_vocabulary
from deepseek.nn.dropout import dropout
from deepseek.nn.encoder_block import MLP
from deepseek.nn.kv_cache import KVCache
from deepseek.nn.multi_head_attention import KeysValues, MultiHeadAttention
from deepseek.nn.pre_norm_block import PreNormBlock, context_of
from deepseek.nn.recompute import recomputed


class WhisperConfig(Config):
    """Sizes of a Whisper."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    vocab_size: int = Field(default=51865, ge=2, le=1 << 24)
    """Number of tokens the model knows; at least the tokenizer's."""
    num_mels: int = Field(default=80, ge=1, le=1024)
    """Frequency bands of the log-mel spectrogram."""
    max_frames: int = Field(default=3000, ge=1, le=1 << 20)
    """Longest recording, in frames of the spectrogram (10 ms each in the published models)."""
    max_length: int = Field(default=448, ge=1, le=1 << 20)
    """Longest text, in tokens."""
    d_model: int = Field(default=384, ge=2, le=1 << 16)
    """Width of the residual streams; even."""
    encoder_layers: int = Field(default=4, ge=1, le=1024)
    """Number of blocks of the encoder."""
    encoder_heads: int = Field(default=6, ge=1, le=1024)
    """Attention heads of the encoder; they divide d_model."""
    encoder_d_ff: int = Field(default=1536, ge=1, le=1 << 18)
    """Width inside the encoder's feed-forward layers."""
    decoder_layers: int = Field(default=4, ge=1, le=1024)
    """Number of blocks of the decoder."""
    decoder_heads: int = Field(default=6, ge=1, le=1024)
    """Attention heads of the decoder; they divide d_model."""
    decoder_d_ff: int = Field(default=1536, ge=1, le=1 << 18)
    """Width inside the decoder's feed-forward layers."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of activations set to zero in training."""
    pad_id: int = Field(default=50257, ge=0)
    """Token that fills up shorter texts."""
    eos_id: int = Field(default=50257, ge=0)
    """Token that ends a text."""
    start_id: int = Field(default=50258, ge=0)
    """Token the decoder begins with."""
    gradient_checkpointing: bool = False
    """Compute block activations again in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _values_fit(self) -> WhisperConfig:
        if self.d_model % 2:
            raise ValueError(
                f"d_model {self.d_model} is odd, and waves come in pairs; nearest that fits: d_model {self.d_model + 1}"
            )
        check_heads(self.d_model, self.encoder_heads)
        check_heads(self.d_model, self.decoder_heads)
        check_in_vocabulary(self.vocab_size, pad_id=self.pad_id, eos_id=self.eos_id, start_id=self.start_id)
        return self


class Whisper(PretrainedMixin, nn.Module):
    """A spectrogram, and the token ids written so far, to logits of the next tokens."""

    config: WhisperConfig
    input_axes: ClassVar[dict[str, tuple[str | None, ...]]] = {"input_features": ("batch", None, "frames")}

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = AudioEncoder(
            config.num_mels,
            config.max_frames,
            config.d_model,
            config.encoder_heads,
            config.encoder_d_ff,
            config.encoder_layers,
            config.dropout,
        )
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.max_length, config.d_model)
        self.decoder = nn.ModuleList(_decoder_block(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.lm_head.weight = self.token_embedding.weight
        self.init_weights()

    def init_weights(self) -> None:
        """Normal weights of deviation 0.02, biases of zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, input_features: Tensor, decoder_input_ids: Tensor) -> Tensor:
        """Return logits (batch, time, vocab_size).

        `input_features` (batch, num_mels, frames): a log-mel spectrogram, shorter recordings filled up with silence.
        `decoder_input_ids` (batch, time): int64, the text shifted right by one with `start_id` in front.
        Raises ModelError for wrong inputs.
        """
        return self.decode(decoder_input_ids, self.encode(input_features))

    def encode(self, input_features: Tensor) -> Tensor:
        """Return the encoder's output (batch, (frames + 1) // 2, d_model), normalised."""
        encoded: Tensor = self.encoder(input_features, self.config.gradient_checkpointing)
        return encoded

    def decode(
        self, decoder_input_ids: Tensor, encoded: Tensor | Sequence[KeysValues], cache: KVCache | None = None
    ) -> Tensor:
        """Return logits (batch, time, vocab_size) after what is in the `cache`.

        `encoded`: the encoder's output, or its keys and values for each block.
        """
        config, past = self.config, cache.length if cache is not None else 0
        check_ids("decoder_input_ids", decoder_input_ids, config.vocab_size, config.max_length - past)
        check_answers("decoder_input_ids", decoder_input_ids, encoded)
        time = decoder_input_ids.shape[1]
        position = torch.arange(past, past + time, device=decoder_input_ids.device)
        x = self.token_embedding(decoder_input_ids) + self.position_embedding(position)
        x = dropout(x, config.dropout, self.training) if config.dropout else x
        recompute = config.gradient_checkpointing and self.training and cache is None
        for layer, block in enumerate(self.decoder):
            context = encoded if isinstance(encoded, Tensor) else encoded[layer]
            x = recomputed(recompute, block, x, None, context, None, cache, layer)
        if cache is not None:
            cache.advance(time)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits

    def generate(
        self,
        input_features: Tensor,
        max_new_tokens: int | None = None,
        *,
        decoder_input_ids: Tensor | None = None,
        logits_processor: Iterable[LogitsProcessor] = (),
        **settings: object,
    ) -> Tensor:
        """Return the texts (batch, 1 + new), `start_id` in front, `pad_id` after a row's `eos_id`.

        `max_new_tokens` is what fits into `max_length` unless given. `decoder_input_ids` (batch, time): a text's
        beginning (language and task tokens), in place of `start_id`. The likeliest token is taken each time unless
        `settings` (the fields of SamplingConfig) say otherwise; tokens are suppressed by a `logits_processor`.
        The model's mode is kept. Raises ModelError for wrong inputs, ConfigError for an unknown or wrong setting.
        """
        config = self.config
        if decoder_input_ids is None:
            shape = (input_features.shape[0], 1)
            decoder_input_ids = torch.full(shape, config.start_id, device=input_features.device)
        room = config.max_length - decoder_input_ids.shape[1] + 1  # the last token is not read again
        if room < (max_new_tokens or 1):
            raise ModelError(
                "beginning and answer are longer than the model's context",
                found=f"{decoder_input_ids.shape[1]} + {max_new_tokens or 1} tokens",
                wanted=f"at most max_length = {config.max_length} together, and one more",
                fix="lower max_new_tokens",
            )
        settings = {"do_sample": False, "eos_id": config.eos_id, "max_new_tokens": max_new_tokens or room, **settings}
        sampling = SamplingConfig(**settings)
        with evaluating(self):
            encoded = self.encode(input_features)
            context = context_of(self.decoder, encoded)
            decoder = CachedDecoder(lambda ids, cache: self.decode(ids, context, cache), self.new_cache)
            return decoded(decoder, decoder_input_ids, sampling, config.pad_id, logits_processor)

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """Return an empty cache of the decoder for `capacity` tokens, on the model's device, in its number format."""
        config, weight = self.config, self.norm.weight
        sizes = (
            config.decoder_layers,
            batch_size,
            config.decoder_heads,
            capacity,
            config.d_model // config.decoder_heads,
        )
        return KVCache(*sizes, weight.device, weight.dtype)

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return `input_features` (batch_size, num_mels, up to 40) and `decoder_input_ids` (batch_size, up to 8)."""
        config, generator = self.config, torch.Generator().manual_seed(0)
        features = torch.randn(batch_size, config.num_mels, min(config.max_frames, 40), generator=generator)
        ids = torch.randint(config.vocab_size, (batch_size, min(config.max_length, 8)), generator=generator)
        return {"input_features": features.to(self.norm.weight), "decoder_input_ids": ids.to(self.norm.weight.device)}


def _decoder_block(config: WhisperConfig) -> PreNormBlock:
    def attention(causal: bool) -> MultiHeadAttention:
        return MultiHeadAttention(
            config.d_model, config.decoder_heads, key_bias=False, causal=causal, dropout=config.dropout
        )

    return PreNormBlock(
        lambda: nn.LayerNorm(config.d_model),
        attention(causal=True),
        MLP(config.d_model, config.decoder_d_ff),
        attention(causal=False),
        config.dropout,
    )
