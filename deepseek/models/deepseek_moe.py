"""DeepSeekMoE: a decoder-only transformer with latent attention and mixtures of shared and routed experts.

Papers: Dai et al. 2024, "DeepSeekMoE", arXiv:2401.06066; DeepSeek-AI 2024, "DeepSeek-V2", arXiv:2405.04434; DeepSeek-AI
2024, "DeepSeek-V3 Technical Report", arXiv:2412.19437. Not here: V3's multi-token prediction module.
Public counterparts: `DeepseekV2ForCausalLM` and `DeepseekV3ForCausalLM` of transformers; equal weights give equal
logits.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.errors import ModelError
from deepseek.models.generation import GenerationMixin
from deepseek.models.pretrained.mixin import PretrainedMixin
from deepseek.nn.checks import check_shape
from deepseek.nn.gated_feed_forward import GatedFeedForward
from deepseek.nn.latent_attention import LatentAttention, LatentAttentionConfig
from deepseek.nn.latent_cache import LatentCache
from deepseek.nn.moe import Experts, MoE, MoEStatistics
from deepseek.nn.moe_config import MoEConfig
from deepseek.nn.recompute import recomputed
from deepseek.nn.rotary import Rotation, rotation
from deepseek.nn.rotary_scaling import RotaryScaling
from deepseek.nn.router import Router, expert_load, load_balancing_loss
from deepseek.nn.text_input import check_text, document_attention


class DeepSeekMoEConfig(Config):
    """Sizes of a DeepSeekMoE."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    vocab_size: int = Field(default=102400, ge=2, le=1 << 24)
    """Number of tokens the model knows; at least the tokenizer's."""
    max_length: int = Field(default=4096, ge=1, le=1 << 24)
    """Longest sequence, in tokens."""
    num_layers: int = Field(default=27, ge=1, le=1024)
    """Number of transformer blocks."""
    num_dense_layers: int = Field(default=1, ge=0, le=1024)
    """The first blocks, which have one feed-forward layer in place of experts."""
    d_model: int = Field(default=2048, ge=1, le=1 << 16)
    """Width of the residual stream."""
    num_heads: int = Field(default=16, ge=1, le=1024)
    """Attention heads."""
    d_ff: int = Field(default=10944, ge=1, le=1 << 18)
    """Width inside the feed-forward layers of the dense blocks."""
    attention: LatentAttentionConfig = LatentAttentionConfig()
    """Sizes of the latent attention."""
    moe: MoEConfig = MoEConfig()
    """Sizes and routing of the experts."""
    rope_base: float = Field(default=10000.0, gt=1)
    """Base of the rotary frequencies; larger ones turn slower."""
    rope_scaling: RotaryScaling | None = None
    """How positions are stretched for longer texts; null leaves them."""
    tie_embeddings: bool = False
    """The output layer shares the token embedding's weight."""
    norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the mean square in RMS norms."""
    init_std: float = Field(default=0.006, gt=0)
    """Standard deviation of the fresh weights."""
    gradient_checkpointing: bool = False
    """Compute block activations again in the backward pass: less memory, about a third more time."""


class BalancedFeatures(NamedTuple):
    """Features, and how evenly the experts were used; losses and counts are those of this forward pass."""

    features: Tensor
    """What `lm_head` reads: (batch, time, d_model)."""
    balance_loss: Tensor
    """The auxiliary loss, mean over the mixtures: a scalar, 1 where all experts are used evenly, with a gradient."""
    load: Tensor
    """How often each expert was chosen: (mixtures, num_experts) of int64; `update_correction_bias` takes it."""
    dropped: Tensor
    """How many choices found their expert full: a scalar of int64, 0 without `capacity_factor`."""


class DeepSeekMoEBlock(nn.Module):
    """Attention, then feed-forward or mixture of experts, each on a normalised input and added to it."""

    def __init__(self, config: DeepSeekMoEConfig, dense: bool) -> None:
        super().__init__()
        d_model = config.d_model
        score_factor = config.rope_scaling.score_factor if config.rope_scaling else 1.0
        self.attention_norm = nn.RMSNorm(d_model, eps=config.norm_eps)
        self.attention = LatentAttention(d_model, config.num_heads, config.attention, score_factor=score_factor)
        self.feed_forward_norm = nn.RMSNorm(d_model, eps=config.norm_eps)
        self.feed_forward = GatedFeedForward(d_model, config.d_ff) if dense else MoE(d_model, config.moe)

    def forward(
        self, x: Tensor, turn: Rotation, mask: Tensor | None = None, cache: LatentCache | None = None, layer: int = 0
    ) -> tuple[Tensor, MoEStatistics | None]:
        """Return (batch, time, d_model), and what the mixture of experts said; see `LatentAttention`."""
        x = x + self.attention(self.attention_norm(x), turn, mask, cache, layer)
        y = self.feed_forward_norm(x)
        if isinstance(self.feed_forward, MoE):
            hidden, statistics = self.feed_forward(y)
            return x + hidden, statistics
        return x + self.feed_forward(y), None


class DeepSeekMoE(GenerationMixin, PretrainedMixin, nn.Module):
    """Token ids to next-token logits."""

    config: DeepSeekMoEConfig
    expert_load: Tensor | None

    def __init__(self, config: DeepSeekMoEConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(
            DeepSeekMoEBlock(config, dense=layer < config.num_dense_layers) for layer in range(config.num_layers)
        )
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.token_embedding.weight
        if config.moe.correction_bias and self.has_mixture:
            shape = (config.num_layers - config.num_dense_layers, config.moe.num_experts)
            self.register_buffer("expert_load", torch.zeros(shape, dtype=torch.int64), persistent=False)
        else:
            self.expert_load = None
        self.init_weights()

    def init_weights(self) -> None:
        """Normal weights of deviation `init_std`, 0.006 in the papers."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding | Router | Experts):
                for weight in module.parameters(recurse=False):
                    nn.init.normal_(weight, std=self.config.init_std)

    def forward(
        self, input_ids: Tensor, document_ids: Tensor | None = None, cache: LatentCache | None = None
    ) -> Tensor:
        """Return logits (batch, time, vocab_size) for `input_ids` (batch, time) of int64.

        `document_ids` (batch, time) keeps attention inside a document. `cache` holds the text before.
        Raises ModelError for a sequence longer than `config.max_length`, and for `document_ids` after a cached text.
        """
        logits: Tensor = self.lm_head(self.forward_features(input_ids, document_ids, cache))
        return logits

    def forward_features(
        self, input_ids: Tensor, document_ids: Tensor | None = None, cache: LatentCache | None = None
    ) -> Tensor:
        """Return what the output layer reads: (batch, time, d_model), normalised."""
        return self._run(input_ids, document_ids, cache)[0]

    @property
    def has_mixture(self) -> bool:
        """Whether any block is a mixture of experts."""
        return self.config.num_dense_layers < self.config.num_layers

    def forward_balanced(self, input_ids: Tensor, document_ids: Tensor | None = None) -> BalancedFeatures:
        """Return `forward_features` together with the auxiliary loss and the load of the experts, for training.

        In training mode a model with `moe.correction_bias` also adds the load up, for `after_step`.
        Raises ModelError for a model whose blocks are all dense.
        """
        features, mixed = self._run(input_ids, document_ids, None)
        if not mixed:
            raise ModelError(
                "the model has no mixture of experts",
                found=f"num_dense_layers {self.config.num_dense_layers} of {self.config.num_layers}",
            )
        losses = torch.stack([load_balancing_loss(layer.routing) for layer in mixed])
        load = torch.stack([expert_load(layer.routing.experts, self.config.moe.num_experts) for layer in mixed])
        dropped = torch.stack([layer.dropped for layer in mixed])
        if self.training and self.expert_load is not None:
            self.expert_load += load
        return BalancedFeatures(features, losses.mean(), load, dropped.sum())

    def after_step(self) -> None:
        """Move the bias of each expert by the load since the last call, over all processes; the trainer calls this."""
        if self.expert_load is not None:
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(self.expert_load)
            self.update_correction_bias(self.expert_load, self.config.moe.correction_rate)
            self.expert_load.zero_()

    def update_correction_bias(self, load: Tensor, rate: float = 1e-3) -> None:
        """Balance without an auxiliary loss: after a training step, move each expert's bias against its load.

        `load` (mixtures, num_experts) of `forward_balanced`, summed over the micro-batches and processes of the step.
        Raises ModelError where `moe.correction_bias` is off, and for a load of another shape.
        """
        if not self.config.moe.correction_bias:
            raise ModelError("the model has no bias to correct", wanted="moe.correction_bias: true")
        routers = [module for module in self.modules() if isinstance(module, Router)]
        check_shape("load", load, (len(routers), self.config.moe.num_experts))
        for router, layer_load in zip(routers, load, strict=True):
            router.update_correction_bias(layer_load, rate)

    def _run(
        self, input_ids: Tensor, document_ids: Tensor | None, cache: LatentCache | None
    ) -> tuple[Tensor, list[MoEStatistics]]:
        config = self.config
        past = cache.length if cache is not None else 0
        check_text(input_ids, config.vocab_size, config.max_length, past)
        mask, time = document_attention(document_ids, input_ids, past), input_ids.shape[1]
        # positions run on over documents: scores depend on distances inside one document alone
        device = input_ids.device
        position = torch.arange(time, device=device) if cache is None else cache.positions(time, device)
        turn = rotation(position, config.attention.rotary_dim, config.rope_base, config.rope_scaling)
        x, found = self.token_embedding(input_ids), []
        for layer, block in enumerate(self.blocks):
            recompute = config.gradient_checkpointing and self.training and cache is None
            x, statistics = recomputed(recompute, block, x, turn, mask, cache, layer)
            if statistics is not None:
                found.append(statistics)
        if cache is not None:
            cache.advance(time)
        return self.norm(x), found

    def new_cache(self, batch_size: int, capacity: int) -> LatentCache:
        """Return an empty cache for `capacity` tokens, on the model's device and in its number format."""
        config, weight = self.config, self.norm.weight
        width = config.attention.kv_rank + config.attention.rotary_dim
        return LatentCache(config.num_layers, batch_size, capacity, width, weight.device, weight.dtype)

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return inputs of the right names and shapes: `input_ids` (batch_size, min(max_length, 16))."""
        time = min(self.config.max_length, 16)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.config.vocab_size, (batch_size, time), generator=generator)
        return {"input_ids": ids.to(self.norm.weight.device)}
