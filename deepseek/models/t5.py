"""T5: an encoder-decoder that turns text into text, with relative positions in buckets.

Paper: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
arXiv:1910.10683; version 1.1 (flan-t5): gated GELU and an output layer of its own, Shazeer 2020, arXiv:2002.05202.
Public counterpart: `T5ForConditionalGeneration` of transformers; equal weights give equal logits.
Not here: the text-to-text tasks themselves, span corruption.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.models.generation import LogitsProcessor, SamplingConfig
from deepseek.models.pretrained.mixin import PretrainedMixin
from deepseek.models.seq2seq_generation import CachedDecoder, check_answers, decoded, evaluating
from deepseek.nn.activated_feed_forward import ActivatedFeedForward
from deepseek.nn.checks import check_ids, check_mask
from deepseek.nn.config_checks import check_in_vocabulary
from deepseek.nn.dropout import dropout
from deepseek.nn.gated_feed_forward import GatedFeedForward
from deepseek.nn.gelu import gelu
from deepseek.nn.kv_cache import KVCache
from deepseek.nn.masks import causal_mask, padding_mask
from deepseek.nn.multi_head_attention import KeysValues, MultiHeadAttention
from deepseek.nn.pre_norm_block import PreNormBlock, context_of
from deepseek.nn.recompute import recomputed
from deepseek.nn.relative_bias import RelativePositionBias


class T5Config(Config):
    """Sizes of a T5."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    vocab_size: int = Field(default=32128, ge=2, le=1 << 24)
    """Number of tokens the model knows; at least the tokenizer's."""
    encoder_layers: int = Field(default=6, ge=1, le=1024)
    """Number of blocks of the encoder."""
    decoder_layers: int = Field(default=6, ge=1, le=1024)
    """Number of blocks of the decoder."""
    d_model: int = Field(default=512, ge=1, le=1 << 16)
    """Width of the residual streams."""
    num_heads: int = Field(default=8, ge=1, le=1024)
    """Attention heads."""
    head_dim: int = Field(default=64, ge=1, le=1 << 12)
    """Width of a head; num_heads * head_dim need not be d_model."""
    d_ff: int = Field(default=2048, ge=1, le=1 << 18)
    """Width inside the feed-forward layers."""
    feed_forward: Literal["relu", "gated_gelu"] = "relu"
    """relu is T5 of 2019, gated_gelu version 1.1 and flan-t5."""
    tie_embeddings: bool = True
    """The output layer shares the token embedding's weight and reads features divided by sqrt(d_model); version 1.1
    has an output layer of its own, and no division."""
    num_buckets: int = Field(default=32, ge=4, le=1 << 12)
    """Number of classes of distances; the encoder uses half of them for each direction."""
    max_distance: int = Field(default=128, ge=2, le=1 << 20)
    """Distances from here on share a bucket."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of activations set to zero in training."""
    norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the mean square in norms."""
    pad_id: int = Field(default=0, ge=0)
    """Token that fills up shorter texts."""
    eos_id: int = Field(default=1, ge=0)
    """Token that ends an answer."""
    start_id: int = Field(default=0, ge=0)
    """Token the decoder begins with."""
    gradient_checkpointing: bool = False
    """Compute block activations again in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _values_fit(self) -> T5Config:
        if self.num_buckets % 4:
            raise ValueError(
                f"num_buckets {self.num_buckets} can't be split in two directions of two halves; "
                f"nearest that fits: num_buckets {max(4, round(self.num_buckets / 4) * 4)}"
            )
        if self.max_distance <= self.num_buckets // 2:
            raise ValueError(
                f"max_distance {self.max_distance} leaves nothing to share among {self.num_buckets} buckets; "
                f"nearest that fits: max_distance {self.num_buckets // 2 + 1}"
            )
        check_in_vocabulary(self.vocab_size, pad_id=self.pad_id, eos_id=self.eos_id, start_id=self.start_id)
        return self


class T5(PretrainedMixin, nn.Module):
    """A text's token ids, and those of the answer so far, to logits of the answer's next tokens."""

    config: T5Config

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        buckets = config.num_heads, config.num_buckets, config.max_distance
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder_bias = RelativePositionBias(*buckets, bidirectional=True)
        self.encoder = nn.ModuleList(_block(config, decoder=False) for _ in range(config.encoder_layers))
        self.encoder_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.decoder_bias = RelativePositionBias(*buckets, bidirectional=False)
        self.decoder = nn.ModuleList(_block(config, decoder=True) for _ in range(config.decoder_layers))
        self.decoder_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.token_embedding.weight
        self.init_weights()

    def init_weights(self) -> None:
        """Normal weights of deviation 1/sqrt(inputs); token vectors of 1; queries smaller, as scores are not scaled."""
        config = self.config
        small = (config.d_model * config.head_dim) ** -0.5
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and not (name == "lm_head" and config.tie_embeddings):
                std = small if name.endswith(".query") else module.in_features**-0.5
                nn.init.normal_(module.weight, std=std)
        nn.init.normal_(self.token_embedding.weight)
        for bias in (self.encoder_bias, self.decoder_bias):
            nn.init.normal_(bias.embedding.weight, std=config.d_model**-0.5)

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return logits (batch, decoder_time, vocab_size).

        `input_ids` (batch, time) and `decoder_input_ids` (batch, decoder_time): int64, the answer shifted right by one
        with `start_id` in front. `attention_mask` (batch, time): 0 at padding. Raises ModelError for wrong inputs.
        """
        return self.decode(decoder_input_ids, self.encode(input_ids, attention_mask), attention_mask)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the encoder's output (batch, time, d_model), normalised."""
        check_ids("input_ids", input_ids, self.config.vocab_size)
        check_mask("attention_mask", attention_mask, input_ids.shape)
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        mask = self.encoder_bias(position, position)
        if attention_mask is not None:
            mask = mask.masked_fill(~padding_mask(attention_mask), torch.finfo(mask.dtype).min)
        x = self._dropped(self.token_embedding(input_ids))
        for block in self.encoder:
            x = recomputed(self._recompute, block, x, mask)
        return self._dropped(self.encoder_norm(x))

    def decode(
        self,
        decoder_input_ids: Tensor,
        encoded: Tensor | Sequence[KeysValues],
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Return logits (batch, decoder_time, vocab_size) after what is in the `cache`.

        `encoded`: the encoder's output, or its keys and values for each block; `attention_mask` belongs to it.
        """
        check_ids("decoder_input_ids", decoder_input_ids, self.config.vocab_size)
        check_answers("decoder_input_ids", decoder_input_ids, encoded)
        time, past = decoder_input_ids.shape[1], cache.length if cache is not None else 0
        position = torch.arange(past + time, device=decoder_input_ids.device)
        bias = self.decoder_bias(position[past:], position)
        mask = bias.masked_fill(~causal_mask(time, past, bias.device), torch.finfo(bias.dtype).min)
        cross_mask = padding_mask(attention_mask) if attention_mask is not None else None
        x = self._dropped(self.token_embedding(decoder_input_ids))
        for layer, block in enumerate(self.decoder):
            context = encoded if isinstance(encoded, Tensor) else encoded[layer]
            x = recomputed(self._recompute and cache is None, block, x, mask, context, cross_mask, cache, layer)
        if cache is not None:
            cache.advance(time)
        x = self._dropped(self.decoder_norm(x))
        logits: Tensor = self.lm_head(x * self.config.d_model**-0.5 if self.config.tie_embeddings else x)
        return logits

    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int = 128,
        *,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        logits_processor: Iterable[LogitsProcessor] = (),
        **settings: object,
    ) -> Tensor:
        """Return the answers (batch, 1 + new), `start_id` in front, `pad_id` after a row's `eos_id`.

        The likeliest token is taken each time unless `settings` (the fields of SamplingConfig) say otherwise.
        `decoder_input_ids` (batch, time): an answer's beginning, in place of `start_id`. The model's mode is kept.
        Raises ModelError for wrong inputs, ConfigError for an unknown or wrong setting.
        """
        config = self.config
        sampling = SamplingConfig(
            **{"do_sample": False, "eos_id": config.eos_id, "max_new_tokens": max_new_tokens, **settings}
        )
        with evaluating(self):
            encoded = self.encode(input_ids, attention_mask)
            if decoder_input_ids is None:
                decoder_input_ids = input_ids.new_full((input_ids.shape[0], 1), config.start_id)
            context = context_of(self.decoder, encoded)
            decoder = CachedDecoder(lambda ids, cache: self.decode(ids, context, attention_mask, cache), self.new_cache)
            return decoded(decoder, decoder_input_ids, sampling, config.pad_id, logits_processor)

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """Return an empty cache of the decoder for `capacity` tokens, on the model's device, in its number format."""
        config, weight = self.config, self.decoder_norm.weight
        sizes = config.decoder_layers, batch_size, config.num_heads, capacity, config.head_dim
        return KVCache(*sizes, weight.device, weight.dtype)

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return `input_ids` (batch_size, 12), `decoder_input_ids` (batch_size, 8) and an `attention_mask` of ones."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.config.vocab_size, (batch_size, 20), generator=generator)
        ids = ids.to(self.decoder_norm.weight.device)
        source, answer = ids[:, :12].contiguous(), ids[:, 12:].contiguous()
        return {"input_ids": source, "decoder_input_ids": answer, "attention_mask": torch.ones_like(source)}

    @property
    def _recompute(self) -> bool:
        return self.config.gradient_checkpointing and self.training

    def _dropped(self, x: Tensor) -> Tensor:
        return dropout(x, self.config.dropout, self.training) if self.config.dropout else x


def _block(config: T5Config, *, decoder: bool) -> PreNormBlock:
    """Return a block without biases whose scores are not divided by sqrt(head_dim)."""

    def attention() -> MultiHeadAttention:
        return MultiHeadAttention(
            config.d_model,
            config.num_heads,
            head_dim=config.head_dim,
            bias=False,
            scale=1.0,
            dropout=config.dropout,
        )

    feed_forward: nn.Module
    if config.feed_forward == "gated_gelu":
        feed_forward = GatedFeedForward(config.d_model, config.d_ff, activation=gelu)
    else:
        feed_forward = ActivatedFeedForward(config.d_model, config.d_ff, F.relu, bias=False, dropout=config.dropout)
    return PreNormBlock(
        lambda: nn.RMSNorm(config.d_model, eps=config.norm_eps),
        attention(),
        feed_forward,
        attention() if decoder else None,
        config.dropout,
    )
