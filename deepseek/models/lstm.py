"""LSTM: a recurrent language model or text classifier.

Embedding, LSTM layers with dropout between them, and an output layer on every step (language model) or on the last
step of the text (classifier). With a cache a text goes on where it stopped, at the same cost for each token however
long it is.
Papers: Hochreiter and Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735; Zaremba et al. 2014, "Recurrent Neural Network
Regularization", arXiv:1409.2329 (the language model: where dropout goes, and the sizes).
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.errors import ModelError
from deepseek.models.generation import GenerationMixin
from deepseek.nn.checks import check_ids, check_mask, check_shape
from deepseek.nn.dropout import dropout
from deepseek.nn.float_tensor import float_tensor
from deepseek.nn.lstm_layer import LSTMLayer, State
from deepseek.nn.recompute import recomputed


class LSTMConfig(Config):
    """Sizes of an LSTM."""

    assignable: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    vocab_size: int = Field(default=32768, ge=2, le=1 << 24)
    """Number of tokens the model knows; at least the tokenizer's."""
    embedding_dim: int | None = Field(default=None, ge=1, le=1 << 16)
    """Width of the token embedding; null is hidden_size."""
    hidden_size: int = Field(default=512, ge=1, le=1 << 16)
    """Width of the states."""
    num_layers: int = Field(default=2, ge=1, le=256)
    """LSTM layers, one on the other."""
    num_labels: int | None = Field(default=None, ge=1, le=1 << 20)
    """Classes of a text classifier; null is a language model."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of activations set to zero in training: of embeddings, between layers, before the output layer."""
    tie_embeddings: bool = False
    """The language model's output layer shares the embedding's weight; needs embedding_dim equal to hidden_size."""
    gradient_checkpointing: bool = False
    """Compute the layers' activations again in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _fits(self) -> LSTMConfig:
        if self.tie_embeddings and self.num_labels is not None:
            raise ValueError("tie_embeddings is for language models; nearest that fits: tie_embeddings false")
        if self.tie_embeddings and self.embedding_dim not in (None, self.hidden_size):
            raise ValueError(
                f"tied embeddings of {self.embedding_dim} don't fit states of {self.hidden_size}; "
                f"nearest that fits: embedding_dim {self.hidden_size}"
            )
        return self


class LSTMCache:
    """The states after a text, for the model to go on from: one pair a layer. `length` counts the tokens so far."""

    def __init__(self, states: list[State]) -> None:
        self.states = states
        self.length = 0

    def detach(self) -> None:
        """Cut the states off from what computed them: the next part of a long text is learned from by itself.

        Source: Williams and Peng 1990, doi:10.1162/neco.1990.2.4.490 (truncated backpropagation through time).
        """
        self.states = [(hidden.detach(), cell.detach()) for hidden, cell in self.states]


class LSTM(GenerationMixin, nn.Module):
    """Token ids to next-token logits, or to the classes of the whole text."""

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        self.config = config
        width = config.embedding_dim or config.hidden_size
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.layers = nn.ModuleList(
            LSTMLayer(width if layer == 0 else config.hidden_size, config.hidden_size)
            for layer in range(config.num_layers)
        )
        self.lm_head = nn.Linear(config.hidden_size, config.num_labels or config.vocab_size)
        if config.tie_embeddings:
            self.lm_head.weight = self.token_embedding.weight
        self.init_weights()

    def init_weights(self) -> None:
        """Embedding and output layer uniform within 0.1, the layers as `LSTMLayer.init_weights` has it."""
        nn.init.uniform_(self.token_embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.lm_head.weight, -0.1, 0.1)
        nn.init.zeros_(self.lm_head.bias)
        for module in self.modules():
            if isinstance(module, LSTMLayer):
                module.init_weights()

    def forward(
        self,
        input_ids: Tensor,
        document_ids: Tensor | None = None,
        cache: LSTMCache | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return logits (batch, time, vocab_size), or (batch, num_labels), for `input_ids` (batch, time) of int64.

        `document_ids` (batch, time) starts the state anew with each document of a row; this goes step by step and is
        slow. `cache` holds the text before, and this text afterwards. `attention_mask` (batch, time), 0 at the padding
        behind a text, tells a classifier where the text ends. Raises ModelError.
        """
        features = self.forward_features(input_ids, document_ids, cache)
        check_mask("attention_mask", attention_mask, tuple(input_ids.shape))
        if self.config.num_labels is not None:
            features = _last(features, attention_mask)
        logits: Tensor = self.lm_head(features)
        return logits

    def forward_features(
        self, input_ids: Tensor, document_ids: Tensor | None = None, cache: LSTMCache | None = None
    ) -> Tensor:
        """Return what the output layer reads at each step: (batch, time, hidden_size)."""
        check_ids("input_ids", input_ids, self.config.vocab_size)
        starts = None
        if document_ids is not None:
            check_shape("document_ids", document_ids, tuple(input_ids.shape))
            if cache is not None and cache.length:
                raise ModelError("document_ids can't follow a text in the cache", found=f"{cache.length} tokens in it")
            changed = document_ids[:, 1:] != document_ids[:, :-1]
            starts = F.pad(changed, (1, 0))
        before = self._start(input_ids.shape[0]) if cache is None else cache.states
        recompute = self.config.gradient_checkpointing and self.training
        x, after = self.token_embedding(input_ids), []
        for layer, state in zip(self.layers, before, strict=True):
            x, last = recomputed(recompute, layer, dropout(x, self.config.dropout, self.training), state, starts)
            after.append(last)
        if cache is not None:
            cache.states = after
            cache.length += input_ids.shape[1]
        return dropout(x, self.config.dropout, self.training)

    def new_cache(self, batch_size: int, capacity: int | None = None) -> LSTMCache:
        """Return the cache of an empty text; `capacity`, which other models need, is without meaning: it never grows.

        In training over a long text in parts, call its `detach` between them.
        """
        return LSTMCache(self._start(batch_size))

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Return `input_ids` (batch_size, 16)."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.config.vocab_size, (batch_size, 16), generator=generator)
        return {"input_ids": ids.to(self.token_embedding.weight.device)}

    def _start(self, batch_size: int) -> list[State]:
        zeros = float_tensor(self.lm_head).new_zeros(batch_size, self.config.hidden_size)
        return [(zeros, zeros) for _ in self.layers]


def _last(features: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the features (batch, hidden_size) of each row's last step that counts."""
    if attention_mask is None:
        return features[:, -1]
    index = (attention_mask.long().sum(dim=1) - 1).clamp(min=0)
    return features.gather(1, index[:, None, None].expand(-1, 1, features.shape[2]))[:, 0]
