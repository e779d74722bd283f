"""GPT: a decoder-only transformer with learned positions, pre-norm blocks and a tied output layer.

Paper: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"
https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
Public counterpart: `GPT2LMHeadModel` of transformers; equal weights give equal logits.

The pattern for every template: config, model, `example_inputs`, initialisation in one place, sizes in `zoo/`.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.models.generation import GenerationMixin
from deepseek.models.pretrained.mixin import PretrainedMixin
from deepseek.nn.config_checks import check_heads
from deepseek.nn.kv_cache import KVCache
from deepseek.nn.recompute import recomputed
from deepseek.nn.text_input import check_text, document_attention
from deepseek.nn.transformer import DecoderBlock


class GPTConfig(Config):
    """Sizes of a GPT."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    vocab_size: int = Field(default=32768, ge=2, le=1 << 24)
    """Number of tokens the model knows; at least the tokenizer's."""
    max_length: int = Field(default=1024, ge=1, le=1 << 20)
    """Longest sequence, in tokens."""
    num_layers: int = Field(default=12, ge=1, le=1024)
    """Number of transformer blocks."""
    d_model: int = Field(default=768, ge=1, le=1 << 16)
    """Width of the residual stream."""
    num_heads: int | None = Field(default=None, ge=1, le=1024)
    """Attention heads; null picks heads of 64 (or of d_model, where 64 does not divide it)."""
    d_ff: int | None = Field(default=None, ge=1, le=1 << 18)
    """Width inside the feed-forward layers; null is 4 * d_model."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of activations set to zero in training."""
    bias: bool = True
    """Biases in linear layers and norms."""
    tie_embeddings: bool = True
    """The output layer shares the token embedding's weight."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the variance in layer norms."""
    gradient_checkpointing: bool = False
    """Compute block activations again in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> GPTConfig:
        if self.num_heads is not None:
            check_heads(self.d_model, self.num_heads)
        return self

    @property
    def heads(self) -> int:
        """The number of attention heads, the default resolved."""
        return self.num_heads or (self.d_model // 64 if self.d_model % 64 == 0 else 1)


class GPT(GenerationMixin, PretrainedMixin, nn.Module):
    """Token ids to next-token logits."""

    config: GPTConfig

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        d_model, d_ff = config.d_model, config.d_ff or 4 * config.d_model
        self.token_embedding = nn.Embedding(config.vocab_size, d_model)
        self.position_embedding = nn.Embedding(config.max_length, d_model)
        self.blocks = nn.ModuleList(
            DecoderBlock(
                d_model, config.heads, d_ff, bias=config.bias, dropout=config.dropout, norm_eps=config.norm_eps
            )
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(d_model, eps=config.norm_eps, bias=config.bias)
        self.lm_head = nn.Linear(d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.token_embedding.weight
        self.init_weights()

    def init_weights(self) -> None:
        """Normal weights of deviation 0.02; what a block adds to the stream is scaled by 1/sqrt(2 * num_layers)."""
        residual = 0.02 / math.sqrt(2 * self.config.num_layers)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=residual if name.endswith((".out", ".down")) else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, input_ids: Tensor, document_ids: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Return logits (batch, time, vocab_size) for `input_ids` (batch, time) of int64.

        `document_ids` (batch, time) keeps attention and positions inside a document. `cache` holds the text before.
        Raises ModelError for a sequence longer than `config.max_length`, and for `document_ids` after a cached text.
        """
        logits: Tensor = self.lm_head(self.forward_features(input_ids, document_ids, cache))
        return logits

    def forward_features(
        self, input_ids: Tensor, document_ids: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Return what the output layer reads: (batch, time, d_model), normalised."""
        past = cache.length if cache is not None else 0
        check_text(input_ids, self.config.vocab_size, self.config.max_length, past)
        mask, time = document_attention(document_ids, input_ids, past), input_ids.shape[1]
        device = input_ids.device
        position = torch.arange(time, device=device) if cache is None else cache.positions(time, device)
        if document_ids is not None:
            position = position - _document_starts(document_ids)
        x = self.token_embedding(input_ids) + self.position_embedding(position)
        for layer, block in enumerate(self.blocks):
            recompute = self.config.gradient_checkpointing and self.training and cache is None
            x = recomputed(recompute, block, x, mask, cache, layer)
        if cache is not None:
            cache.advance(time)
        features: Tensor = self.norm(x)
        return features

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """Return an empty cache for `capacity` tokens, on the model's device and in its number format."""
        config, weight = self.config, self.norm.weight
        return KVCache(
            config.num_layers,
            batch_size,
            config.heads,
            capacity,
            config.d_model // config.heads,
            weight.device,
            weight.dtype,
        )

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return inputs of the right names and shapes: `input_ids` (batch_size, min(max_length, 16))."""
        time = min(self.config.max_length, 16)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.config.vocab_size, (batch_size, time), generator=generator)
        return {"input_ids": ids.to(self.norm.weight.device)}


def _document_starts(document_ids: Tensor) -> Tensor:
    """Return for each position (batch, time) where its document begins in the sequence."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    changed = torch.ones_like(document_ids, dtype=torch.bool)
    changed[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return torch.where(changed, index, 0).cummax(dim=1).values
