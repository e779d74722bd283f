"""BERT: a bidirectional transformer encoder with post-norm blocks, and its masked-token and classification heads.

Paper: Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
arXiv:1810.04805. Public counterparts: `BertModel`, `BertForMaskedLM` and `BertForSequenceClassification` of
transformers; equal weights give equal answers. Not here: next-sentence prediction, decoder mode, cross-attention.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.errors import ModelError
from deepseek.models.pretrained.mixin import PretrainedMixin
from deepseek.nn.activations import ACTIVATIONS
from deepseek.nn.checks import check_ids, check_mask
from deepseek.nn.config_checks import check_heads, check_in_vocabulary
from deepseek.nn.dropout import dropout
from deepseek.nn.encoder_block import MLP, SelfAttention
from deepseek.nn.masks import padding_mask
from deepseek.nn.recompute import recomputed


class BERTConfig(Config):
    """Sizes of a BERT and its head."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    vocab_size: int = Field(default=30522, ge=2, le=1 << 24)
    """Number of tokens the model knows."""
    max_length: int = Field(default=512, ge=1, le=1 << 20)
    """Longest sequence, in tokens."""
    num_layers: int = Field(default=12, ge=1, le=1024)
    """Number of transformer blocks."""
    d_model: int = Field(default=768, ge=1, le=1 << 16)
    """Width of the residual stream."""
    num_heads: int = Field(default=12, ge=1, le=1024)
    """Attention heads; they divide d_model."""
    d_ff: int | None = Field(default=None, ge=1, le=1 << 18)
    """Width inside the feed-forward layers; null is 4 * d_model."""
    token_types: int = Field(default=2, ge=1, le=1 << 16)
    """Number of kinds of text that token_type_ids tell apart (first and second sentence)."""
    pad_token_id: int | None = Field(default=0, ge=0)
    """The token whose embedding starts at zero and is not trained; null trains all."""
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    """GELU in its exact form, as in BERT's releases, or in its tanh form."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of activations set to zero in training."""
    attention_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of attention weights set to zero in training."""
    norm_eps: float = Field(default=1e-12, gt=0)
    """Added to the variance in layer norms."""
    head: Literal["none", "masked_lm", "classification"] = "none"
    """What the model answers: features, logits for every token, or logits for the whole text."""
    num_labels: int = Field(default=2, ge=1, le=1 << 20)
    """Number of classes of the classification head."""
    classifier_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout before the classification layer; null is dropout."""
    gradient_checkpointing: bool = False
    """Compute block activations again in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> BERTConfig:
        check_heads(self.d_model, self.num_heads)
        check_in_vocabulary(self.vocab_size, pad_token_id=self.pad_token_id)
        return self


class BERTOutput(NamedTuple):
    """What a BERT without a head answers."""

    last_hidden_state: Tensor
    """Features of every token, (batch, time, d_model)."""
    pooled: Tensor
    """Features of the whole text, (batch, d_model): the first token's, through a layer and tanh."""


class PostNormBlock(nn.Module):
    """Attention, then feed-forward, each added to its input and normalised after that."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        d_model, d_ff = config.d_model, config.d_ff or 4 * config.d_model
        self.dropout = config.dropout
        self.attention = SelfAttention(d_model, config.num_heads, dropout=config.attention_dropout)
        self.attention_norm = nn.LayerNorm(d_model, eps=config.norm_eps)
        self.feed_forward = MLP(d_model, d_ff, activation=ACTIVATIONS[config.activation], dropout=config.dropout)
        self.feed_forward_norm = nn.LayerNorm(d_model, eps=config.norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return (batch, time, d_model). `mask` as for `deepseek.nn.dot_product_attention.attention`."""
        x = self.attention_norm(x + dropout(self.attention(x, mask), self.dropout, self.training))
        out: Tensor = self.feed_forward_norm(x + self.feed_forward(x))
        return out


class BERT(PretrainedMixin, nn.Module):
    """Token ids to features, or to the logits of a head."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.config = config
        d_model = config.d_model
        self.token_embedding = nn.Embedding(config.vocab_size, d_model, padding_idx=config.pad_token_id)
        self.position_embedding = nn.Embedding(config.max_length, d_model)
        self.token_type_embedding = nn.Embedding(config.token_types, d_model)
        self.embedding_norm = nn.LayerNorm(d_model, eps=config.norm_eps)
        self.blocks = nn.ModuleList(PostNormBlock(config) for _ in range(config.num_layers))
        if config.head == "masked_lm":
            self.head_dense = nn.Linear(d_model, d_model)
            self.head_norm = nn.LayerNorm(d_model, eps=config.norm_eps)
            self.lm_head = nn.Linear(d_model, config.vocab_size)
            self.lm_head.weight = self.token_embedding.weight
        else:
            self.pooler = nn.Linear(d_model, d_model)
        if config.head == "classification":
            self.classifier = nn.Linear(d_model, config.num_labels)
        self.init_weights()

    def init_weights(self) -> None:
        """Normal weights of deviation 0.02, biases and the padding token's embedding zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        if self.config.pad_token_id is not None:
            with torch.no_grad():
                self.token_embedding.weight[self.config.pad_token_id].zero_()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor | BERTOutput:
        """Return what `config.head` says for `input_ids` (batch, time) of int64.

        "none": `BERTOutput`; "masked_lm": logits (batch, time, vocab_size); "classification": logits
        (batch, num_labels). `attention_mask` (batch, time) is 0 at padding; `token_type_ids` (batch, time) are below
        config.token_types, None is all 0. Raises ModelError for other shapes, unknown tokens, or too long a text.
        """
        features = self.forward_features(input_ids, attention_mask, token_type_ids)
        if self.config.head == "masked_lm":
            return self.token_logits(features)
        pooled = torch.tanh(self.pooler(features[:, 0]))
        if self.config.head == "none":
            return BERTOutput(features, pooled)
        rate = self.config.dropout if self.config.classifier_dropout is None else self.config.classifier_dropout
        labels: Tensor = self.classifier(dropout(pooled, rate, self.training))
        return labels

    def forward_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Return the features of every token, (batch, time, d_model); arguments as for `forward`."""
        config = self.config
        check_ids("input_ids", input_ids, config.vocab_size, config.max_length)
        check_mask("attention_mask", attention_mask, input_ids.shape)
        if token_type_ids is not None:
            check_ids("token_type_ids", token_type_ids, config.token_types)
            check_mask("token_type_ids", token_type_ids, input_ids.shape)
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.token_embedding(input_ids) + self.token_type_embedding(types) + self.position_embedding(position)
        x = dropout(self.embedding_norm(x), config.dropout, self.training)
        recompute = config.gradient_checkpointing and self.training
        mask = None if attention_mask is None else padding_mask(attention_mask)
        for block in self.blocks:
            x = recomputed(recompute, block, x, mask)
        features: Tensor = x
        return features

    def token_logits(self, features: Tensor) -> Tensor:
        """Return the masked-token head's logits (..., vocab_size) for `features` (..., d_model) of any tokens.

        Raises ModelError where the model has another head.
        """
        if self.config.head != "masked_lm":
            raise ModelError("the model has no masked-token head", found=self.config.head, wanted="head: masked_lm")
        hidden = ACTIVATIONS[self.config.activation](self.head_dense(features))
        logits: Tensor = self.lm_head(self.head_norm(hidden))
        return logits

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return inputs of the right names and shapes, (batch_size, min(max_length, 16)); the last token is padding."""
        time = min(self.config.max_length, 16)
        device = self.embedding_norm.weight.device
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.config.vocab_size, (batch_size, time), generator=generator).to(device)
        mask = torch.ones_like(ids)
        mask[:, max(1, time - 1) :] = 0
        types = torch.arange(time, device=device).expand_as(ids) * self.config.token_types // time
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


class BertForSequenceClassification(BERT):
    """BERT with the classification head, under the name it has elsewhere."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__(config if config.head == "classification" else config.replace(head="classification"))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        **changes: Any,
    ) -> Self:
        """Return a BERT classifier from any BERT checkpoint, `num_labels` among the `changes`.

        A head that the checkpoint lacks, or has in another size, is started anew, with a warning. For the rest see
        `deepseek.models.pretrained.from_pretrained`.
        """
        return super().from_pretrained(source, dtype=dtype, device=device, **{**changes, "head": "classification"})
