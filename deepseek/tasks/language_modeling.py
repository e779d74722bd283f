"""Language modelling: predict the next token. Batches: `input_ids`, `labels` (-100 where none), `document_ids`."""

from __future__ import annotations

import math
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.nn.linear_cross_entropy import CHUNK_BYTES, linear_cross_entropy_sum
from deepseek.nn.losses import IGNORE, check_smoothing, chunked_cross_entropy, cross_entropy_sum
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
    loss (DeepSeek-V2 trains with 0.003, arXiv:2405.04434); 0 leaves it out. `label_smoothing` (the share of a target
    spread over all tokens) and `z_loss` (see `deepseek.nn.losses.cross_entropy_sum`) are for training alone too:
    evaluation measures plain cross-entropy, of which the perplexity is made. Raises ConfigError for settings.
    """

    name = "language_modeling"

    def __init__(
        self,
        max_logits_bytes: int = 256 << 20,
        balance_weight: float = 0.003,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> None:
        if max_logits_bytes < 1:
            raise ConfigError("max_logits_bytes is too small", found=max_logits_bytes, wanted="at least 1")
        for name, weight in (("balance_weight", balance_weight), ("z_loss", z_loss)):
            if not weight >= 0:
                raise ConfigError(f"{name} is a weight", found=weight, wanted="0 or more")
        self.max_logits_bytes = max_logits_bytes
        self.balance_weight = balance_weight
        self.label_smoothing = check_smoothing(label_smoothing)
        self.z_loss = z_loss

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
        extras = (self.label_smoothing, self.z_loss) if model.training else (0.0, 0.0)
        if not _has_features(type(model)):
            return cross_entropy_sum(model(input_ids, **documents).flatten(0, 1), labels, *extras)
        if model.training and getattr(model, "has_mixture", False):
            features, balance = cast(HasMixture, model).forward_balanced(input_ids, **documents)[:2]
            extra = self.balance_weight * balance * (labels != IGNORE).sum()
            return self._from_features(cast(HasFeatures, model), features, labels, extras) + extra
        language_model = cast(HasFeatures, model)
        features = language_model.forward_features(input_ids, **documents)
        return self._from_features(language_model, features, labels, extras)

    def _from_features(
        self, language_model: HasFeatures, features: Tensor, labels: Tensor, extras: tuple[float, float]
    ) -> Tensor:
        features = features.flatten(0, 1)
        vocab_size = int(getattr(language_model.lm_head, "out_features", 1))
        chunk = max(1, self.max_logits_bytes // (4 * vocab_size))
        if features.shape[0] <= chunk:
            return cross_entropy_sum(language_model.lm_head(features), labels, *extras)
        head = language_model.lm_head
        if type(head) is not nn.Linear:  # a quantized layer, say
            return chunked_cross_entropy(head, features, labels, chunk, *extras)
        smoothing, z_loss = extras
        return linear_cross_entropy_sum(
            features,
            head.weight,
            labels,
            head.bias,
            label_smoothing=smoothing,
            z_loss=z_loss,
            chunk_bytes=min(CHUNK_BYTES, self.max_logits_bytes),
        )

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the loss in nats a token and the perplexity."""
        return {"loss": mean_loss, "perplexity": math.exp(min(mean_loss, 700.0))}

    def predict(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return next-token probabilities (batch, vocab_size) after `inputs` (batch, time)."""
        with torch.inference_mode():
            logits: Tensor = model(inputs)
            return logits[:, -1].float().softmax(-1)
