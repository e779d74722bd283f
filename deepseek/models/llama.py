"""Llama: a decoder-only transformer with rotary positions, grouped-query attention, SwiGLU and RMS norms.

With biases on queries, keys and values and a tied output layer it is Qwen2.
Papers: Touvron et al. 2023, "Llama 2: Open Foundation and Fine-Tuned Chat Models", arXiv:2307.09288; Grattafiori et al.
2024, "The Llama 3 Herd of Models", arXiv:2407.21783; Yang et al. 2024, "Qwen2 Technical Report", arXiv:2407.10671.
Public counterparts: `LlamaForCausalLM` and `Qwen2ForCausalLM` of transformers; equal weights give equal logits.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.models.generation import GenerationMixin
from deepseek.models.pretrained.mixin import PretrainedMixin
from deepseek.nn.gated_feed_forward import GatedFeedForward
from deepseek.nn.grouped_query_attention import GroupedQueryAttention
from deepseek.nn.kv_cache import KVCache
from deepseek.nn.recompute import recomputed
from deepseek.nn.rotary import Rotation, rotation
from deepseek.nn.rotary_scaling import RotaryScaling
from deepseek.nn.text_input import check_text, document_attention


class LlamaConfig(Config):
    """Sizes of a Llama."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    vocab_size: int = Field(default=32000, ge=2, le=1 << 24)
    """Number of tokens the model knows; at least the tokenizer's."""
    max_length: int = Field(default=4096, ge=1, le=1 << 24)
    """Longest sequence, in tokens."""
    num_layers: int = Field(default=32, ge=1, le=1024)
    """Number of transformer blocks."""
    d_model: int = Field(default=4096, ge=1, le=1 << 16)
    """Width of the residual stream."""
    num_heads: int = Field(default=32, ge=1, le=1024)
    """Query heads."""
    num_kv_heads: int | None = Field(default=None, ge=1, le=1024)
    """Heads of keys and values, shared by groups of query heads; null is num_heads."""
    head_dim: int | None = Field(default=None, ge=2, le=1 << 14, multiple_of=2)
    """Width of a head; null is d_model / num_heads."""
    d_ff: int | None = Field(default=None, ge=1, le=1 << 18)
    """Width inside the feed-forward layers; null is 8/3 of d_model, rounded up to a multiple of 256."""
    rope_base: float = Field(default=10000.0, gt=1)
    """Base of the rotary frequencies; larger ones turn slower."""
    rope_scaling: RotaryScaling | None = None
    """How positions are stretched for longer texts; null leaves them."""
    qkv_bias: bool = False
    """Biases on queries, keys and values (Qwen2)."""
    out_bias: bool = False
    """A bias on the attention's output layer."""
    feed_forward_bias: bool = False
    """Biases in the feed-forward layers."""
    tie_embeddings: bool = False
    """The output layer shares the token embedding's weight."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the mean square in RMS norms."""
    gradient_checkpointing: bool = False
    """Compute block activations again in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _heads_fit(self) -> LlamaConfig:
        if self.head_dim is None and (self.d_model % self.num_heads or self.d_model // self.num_heads % 2):
            fitting = [n for n in range(1, self.d_model + 1) if self.d_model % n == 0 and self.d_model // n % 2 == 0]
            hint = f"num_heads {min(fitting, key=lambda n: abs(n - self.num_heads))}" if fitting else "an even d_model"
            raise ValueError(
                f"d_model {self.d_model} can't be split into {self.num_heads} heads of even width; "
                f"nearest that fits: {hint}, or give head_dim"
            )
        if self.num_heads % self.kv_heads:
            fitting = [heads for heads in range(1, self.num_heads + 1) if self.num_heads % heads == 0]
            nearest = min(fitting, key=lambda heads: abs(heads - self.kv_heads))
            raise ValueError(
                f"{self.num_heads} query heads can't share {self.kv_heads} heads of keys; "
                f"nearest that fits: num_kv_heads {nearest}"
            )
        return self

    @property
    def kv_heads(self) -> int:
        """The number of heads of keys and values, the default resolved."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """The width of a head, the default resolved."""
        return self.head_dim or self.d_model // self.num_heads

    @property
    def feed_forward_width(self) -> int:
        """The width inside the feed-forward layers, the default resolved."""
        return self.d_ff or 256 * -(-8 * self.d_model // (3 * 256))


class LlamaBlock(nn.Module):
    """Attention, then feed-forward, each on a normalised input and added to it."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.attention = GroupedQueryAttention(
            config.d_model,
            config.num_heads,
            config.kv_heads,
            config.head_width,
            qkv_bias=config.qkv_bias,
            out_bias=config.out_bias,
        )
        self.feed_forward_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.feed_forward = GatedFeedForward(config.d_model, config.feed_forward_width, bias=config.feed_forward_bias)

    def forward(
        self, x: Tensor, turn: Rotation, mask: Tensor | None = None, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """Return (batch, time, d_model); see `GroupedQueryAttention` for the arguments."""
        x = x + self.attention(self.attention_norm(x), turn, mask, cache, layer)
        out: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return out


class Llama(GenerationMixin, PretrainedMixin, nn.Module):
    """Token ids to next-token logits."""

    config: LlamaConfig

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(LlamaBlock(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.token_embedding.weight
        self.init_weights()

    def init_weights(self) -> None:
        """Normal weights of deviation 0.02, biases of zero, as the counterpart has it."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, input_ids: Tensor, document_ids: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Return logits (batch, time, vocab_size) for `input_ids` (batch, time) of int64.

        `document_ids` (batch, time) keeps attention inside a document. `cache` holds the text before.
        Raises ModelError for a sequence longer than `config.max_length`, and for `document_ids` after a cached text.
        """
        logits: Tensor = self.lm_head(self.forward_features(input_ids, document_ids, cache))
        return logits

    def forward_features(
        self, input_ids: Tensor, document_ids: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Return what the output layer reads: (batch, time, d_model), normalised."""
        config = self.config
        past = cache.length if cache is not None else 0
        check_text(input_ids, config.vocab_size, config.max_length, past)
        mask, time = document_attention(document_ids, input_ids, past), input_ids.shape[1]
        # positions run on over documents: scores depend on distances inside one document alone
        device = input_ids.device
        position = torch.arange(time, device=device) if cache is None else cache.positions(time, device)
        turn = rotation(position, config.head_width, config.rope_base, config.rope_scaling)
        x = self.token_embedding(input_ids)
        for layer, block in enumerate(self.blocks):
            recompute = config.gradient_checkpointing and self.training and cache is None
            x = recomputed(recompute, block, x, turn, mask, cache, layer)
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
            config.kv_heads,
            capacity,
            config.head_width,
            weight.device,
            weight.dtype,
        )

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return inputs of the right names and shapes: `input_ids` (batch_size, min(max_length, 16))."""
        time = min(self.config.max_length, 16)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.config.vocab_size, (batch_size, time), generator=generator)
        return {"input_ids": ids.to(self.norm.weight.device)}
