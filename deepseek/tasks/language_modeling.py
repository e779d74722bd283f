"""Language modelling: predict the next token. Batches: `input_ids`, `labels` (-100 where none), `document_ids`."""

from __future__ import annotations

import math
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from deepseek.nn.losses import IGNORE, chunked_cross_entropy, cross_entropy_sum
from deepseek.tasks.task import Batch, Loss


class HasFeatures(Protocol):
    """A language model whose output layer can be applied apart, part by part."""

    @property
    def lm_head(self) -> nn.Module:
        """The output layer: (..., d_model) to (..., vocab_size)."""
        ...

    def forward_features(self, input_ids: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Return what `lm_head` reads: (batch, time, d_model)."""
        ...


class HasMixture(Protocol):
    """A language model some of whose blocks are mixtures of experts."""

    has_mixture: bool

    def forward_balanced(self, input_ids: Tensor, document_ids: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return what `forward_features` does, the load-balancing loss (a scalar), and more."""
        ...


def _has_features(kind: type[nn.Module]) -> bool:
    return callable(getattr(kind, "forward_features", None))


class LanguageModeling:
    """Next-token cross-entropy in nats, summed over the labels that are not -100.

    Logits of more than `max_logits_bytes` (float32) are computed in chunks, so that they are never all in memory.
    In training, a model with a mixture of experts adds `balance_weight` times its load-balancing loss to each token's
    loss (DeepSeek-V2 trains with 0.003, arXiv:2405.04434); 0 leaves it out.
    """

    name = "language_modeling"

    def __init__(self, max_logits_bytes: int = 256 << 20, balance_weight: float = 0.003) -> None:
        self.max_logits_bytes = max_logits_bytes
        self.balance_weight = balance_weight

    def count(self, batch: Batch) -> int:
        """Return the number of target tokens."""
        return int(torch.count_nonzero(batch["labels"] != IGNORE))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the summed loss of `input_ids` and `labels`, both (batch, time) of int64."""
        return Loss(self.loss_sum(model, batch), self.count(batch))

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss alone: what a compiler can follow without leaving the graph."""
        input_ids, labels = batch["input_ids"], batch["labels"].flatten()
        documents = {"document_ids": batch["document_ids"]} if "document_ids" in batch else {}
        if not _has_features(type(model)):
            return cross_entropy_sum(model(input_ids, **documents).flatten(0, 1), labels)
        if model.training and getattr(model, "has_mixture", False):
            features, balance = cast(HasMixture, model).forward_balanced(input_ids, **documents)[:2]
            extra = self.balance_weight * balance * (labels != IGNORE).sum()
            return self._from_features(cast(HasFeatures, model), features, labels) + extra
        language_model = cast(HasFeatures, model)
        return self._from_features(language_model, language_model.forward_features(input_ids, **documents), labels)

    def _from_features(self, language_model: HasFeatures, features: Tensor, labels: Tensor) -> Tensor:
        features = features.flatten(0, 1)
        vocab_size = int(getattr(language_model.lm_head, "out_features", 1))
        chunk = max(1, self.max_logits_bytes // (4 * vocab_size))
        if features.shape[0] <= chunk:
            return cross_entropy_sum(language_model.lm_head(features), labels)
        return chunked_cross_entropy(language_model.lm_head, features, labels, chunk)

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the loss in nats a token and the perplexity."""
        return {"loss": mean_loss, "perplexity": math.exp(min(mean_loss, 700.0))}

    def predict(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return next-token probabilities (batch, vocab_size) after `inputs` (batch, time)."""
        with torch.inference_mode():
            logits: Tensor = model(inputs)
            return logits[:, -1].float().softmax(-1)
