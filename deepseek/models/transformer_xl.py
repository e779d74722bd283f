"""Transformer-XL: a language model that reads a text in segments and keeps what its layers made of those before.

A segment's tokens attend to the segment and to a memory of the last `memory_length` inputs of each layer, without
gradients into it. So context reaches back num_layers * memory_length tokens, at the cost of one segment.
Paper: Dai et al. 2019, "Transformer-XL: Attentive Language Models beyond a Fixed-Length Context", arXiv:1901.02860.
Not here: the adaptive softmax of the authors' code (the output layer is one matrix over all tokens, here tied).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.models.generation import LogitsProcessor, SamplingConfig
from deepseek.models.seq2seq_generation import CachedDecoder, decoded, evaluating
from deepseek.nn.activated_feed_forward import ActivatedFeedForward
from deepseek.nn.checks import check_floats, check_ids, check_shape
from deepseek.nn.config_checks import check_heads
from deepseek.nn.dropout import dropout
from deepseek.nn.kv_cache import KVCache
from deepseek.nn.masks import causal_mask
from deepseek.nn.positions import relative_position_encoding
from deepseek.nn.recompute import recomputed
from deepseek.nn.relative_attention import RelativeAttention


class TransformerXLConfig(Config):
    """Sizes of a Transformer-XL."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing", "memory_length"})

    vocab_size: int = Field(default=32768, ge=2, le=1 << 24)
    """Number of tokens the model knows; at least the tokenizer's."""
    num_layers: int = Field(default=16, ge=1, le=1024)
    """Number of transformer blocks."""
    d_model: int = Field(default=410, ge=2, le=1 << 16)
    """Width of the residual stream; even."""
    num_heads: int = Field(default=10, ge=1, le=1024)
    """Attention heads; they divide d_model."""
    d_ff: int = Field(default=2100, ge=1, le=1 << 18)
    """Width inside the feed-forward layers."""
    memory_length: int = Field(default=150, ge=0, le=1 << 20)
    """Tokens of the past that each layer keeps. May be another for reading than it was for training."""
    pre_norm: bool = False
    """Normalise what a layer reads and not what it returns: steadier training of deep models. The paper has false."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of activations set to zero in training."""
    tie_embeddings: bool = True
    """The output layer shares the token embedding's weight; it has a bias of its own."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the variance in layer norms."""
    gradient_checkpointing: bool = False
    """Compute block activations again in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> TransformerXLConfig:
        if self.d_model % 2:
            raise ValueError(
                f"d_model {self.d_model} is odd, and waves come in pairs; nearest that fits: d_model {self.d_model + 1}"
            )
        check_heads(self.d_model, self.num_heads)
        return self


class SegmentOutput(NamedTuple):
    """What a Transformer-XL makes of one segment."""

    logits: Tensor
    """(batch, time, vocab_size)."""
    memory: Tensor
    """(num_layers, batch, at most memory_length, d_model), without gradients: to be given with the next segment."""


class TransformerXL(nn.Module):
    """A segment's token ids, and the memory of those before, to next-token logits and the memory after it."""

    config: TransformerXLConfig

    def __init__(self, config: TransformerXLConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(TransformerXLBlock(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.lm_head = nn.Linear(config.d_model, config.vocab_size)
        if config.tie_embeddings:
            self.lm_head.weight = self.token_embedding.weight
        self.init_weights()

    def init_weights(self) -> None:
        """Normal weights of deviation 0.02, the two vectors u and v of each head as well; biases of zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, RelativeAttention):
                nn.init.normal_(module.content_bias, std=0.02)
                nn.init.normal_(module.position_bias, std=0.02)

    def forward(self, input_ids: Tensor, memory: Tensor | None = None) -> SegmentOutput:
        """Return logits and the next memory for a segment `input_ids` (batch, time) of int64, of any length.

        `memory` is what the segment before returned, None at the beginning of a text; rows go on where they stopped.
        Raises ModelError for wrong inputs.
        """
        features, memory = self._features(input_ids, memory)
        return SegmentOutput(self.lm_head(features), memory)

    def forward_features(self, input_ids: Tensor) -> Tensor:
        """Return what the output layer reads, (batch, time, d_model), for a text of one segment."""
        return self._features(input_ids, None)[0]

    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int = 128,
        *,
        logits_processor: Iterable[LogitsProcessor] = (),
        **settings: object,
    ) -> Tensor:
        """Return `input_ids` (batch, time) with the new tokens behind; the text may be of any length.

        It is read in segments of `memory_length`, then goes on token by token. The likeliest token is taken each time
        unless `settings` (the fields of SamplingConfig) say otherwise. The model's mode is kept.
        Raises ModelError for wrong inputs, ConfigError for an unknown or wrong setting.
        """
        check_ids("input_ids", input_ids, self.config.vocab_size)
        sampling = SamplingConfig(**{"do_sample": False, "max_new_tokens": max_new_tokens, **settings})
        memory: Tensor | None = None

        def step(ids: Tensor, cache: KVCache | None) -> Tensor:
            nonlocal memory
            length = max(1, self.config.memory_length)
            for start in range(0, ids.shape[1], length):
                output: SegmentOutput = self(ids[:, start : start + length], memory)
                memory = output.memory
            return output.logits

        def no_cache(batch_size: int, capacity: int) -> KVCache:  # the memory takes its place
            return KVCache(0, batch_size, 0, 0, 0, input_ids.device, torch.float32)

        with evaluating(self):
            return decoded(CachedDecoder(step, no_cache), input_ids, sampling, sampling.eos_id or 0, logits_processor)

    def _features(self, input_ids: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        self._check(input_ids, memory)
        config, time = self.config, input_ids.shape[1]
        past = memory.shape[2] if memory is not None else 0
        distance = torch.arange(past + time - 1, -1, -1, device=input_ids.device)
        x = self._dropped(self.token_embedding(input_ids) * math.sqrt(config.d_model))
        encoding = self._dropped(relative_position_encoding(distance, config.d_model).to(x.dtype))
        mask = causal_mask(time, past, input_ids.device)
        kept = []
        for layer, block in enumerate(self.blocks):
            before = memory[layer].to(x.dtype) if memory is not None else x[:, :0].detach()
            kept.append(torch.cat([before, x.detach()], dim=1)[:, max(0, past + time - config.memory_length) :])
            x = recomputed(config.gradient_checkpointing and self.training, block, x, before, encoding, mask)
        return self._dropped(self.norm(x)), torch.stack(kept)

    def _check(self, input_ids: Tensor, memory: Tensor | None) -> None:
        check_ids("input_ids", input_ids, self.config.vocab_size)
        if memory is not None:
            wanted = (self.config.num_layers, input_ids.shape[0], "past", self.config.d_model)
            check_shape("memory", memory, wanted)
            check_floats("memory", memory, "give what the segment before returned")

    def _dropped(self, x: Tensor) -> Tensor:
        return dropout(x, self.config.dropout, self.training) if self.config.dropout else x

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return `input_ids` (batch_size, 16) and a `memory` of up to 8 tokens."""
        config, generator = self.config, torch.Generator().manual_seed(0)
        weight = self.get_parameter("blocks.0.attention_norm.weight")
        ids = torch.randint(config.vocab_size, (batch_size, 16), generator=generator)
        shape = (config.num_layers, batch_size, min(8, config.memory_length), config.d_model)
        return {"input_ids": ids.to(weight.device), "memory": torch.randn(shape, generator=generator).to(weight)}


class TransformerXLBlock(nn.Module):
    """Relative attention, then feed-forward, each added to its input; normalised after, or with `pre_norm` before."""

    def __init__(self, config: TransformerXLConfig) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.dropout = config.dropout
        self.attention_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.attention = RelativeAttention(config.d_model, config.num_heads)
        self.feed_forward_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.feed_forward = ActivatedFeedForward(config.d_model, config.d_ff, F.relu, dropout=config.dropout)

    def forward(self, x: Tensor, memory: Tensor, encoding: Tensor, mask: Tensor) -> Tensor:
        """Return (batch, time, d_model).

        `memory` (batch, past, d_model): earlier inputs of this block; `encoding` and `mask`: see `RelativeAttention`.
        """

        def attended(inner: Tensor) -> Tensor:
            before = self.attention_norm(memory) if self.pre_norm else memory
            found: Tensor = self.attention(inner, torch.cat([before, inner], dim=1), encoding, mask)
            return found

        return self.around(x, attended)

    def around(self, x: Tensor, attended: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the block's output for `x` (..., d_model), where `attended` is what attention makes of its input."""
        if self.pre_norm:
            x = x + self._dropped(attended(self.attention_norm(x)))
            return x + self._dropped(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(x + self._dropped(attended(x)))
        out: Tensor = self.feed_forward_norm(x + self._dropped(self.feed_forward(x)))
        return out

    def _dropped(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training) if self.dropout else x
