"""Masked language modelling: say which tokens stood where some are hidden.

Batches: `input_ids` (batch, time) with the hidden tokens, `attention_mask` and `token_type_ids` where the model takes
them, and the hidden tokens in one of two forms: `labels` (batch, time), -100 where nothing is hidden; or
`masked_positions` (batch, n), places in the row, with `labels` (batch, n), -100 behind the last. The stage
`deepseek.data.masking.MaskTokens` makes both. With places the shapes are fixed, so that the output layer sees only
hidden tokens in compiled code too; without, it does in eager code alone.
Source: Devlin et al. 2018, "BERT", arXiv:1810.04805, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError, DataError
from deepseek.metrics.classification import Accuracy
from deepseek.nn.losses import IGNORE, check_smoothing, chunked_cross_entropy, cross_entropy_sum
from deepseek.tasks.inputs import answer_to, call_model, input_names, target
from deepseek.tasks.task import Batch, Loss, LossSum

_NOT_INPUTS = ("labels", "masked_positions")


class HasTokenHead(Protocol):
    """A model whose output layer can be applied to some tokens alone, as `deepseek.models.bert.BERT`."""

    def forward_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the features of every token, (batch, time, d_model); further inputs by their names."""
        ...

    def token_logits(self, features: Tensor) -> Tensor:
        """Return logits (..., vocab_size) for features (..., d_model)."""
        ...


class MaskedLanguageModeling:
    """Cross-entropy in nats, summed over the hidden tokens; the output layer sees no other.

    Logits of more than `max_logits_bytes` (float32) are computed in chunks. `label_smoothing` is the share of a target
    that is spread over all tokens, in training only. Raises ConfigError for settings out of range.
    """

    name = "masked_lm"

    def __init__(self, label_smoothing: float = 0.0, max_logits_bytes: int = 256 << 20) -> None:
        if max_logits_bytes < 1:
            raise ConfigError("max_logits_bytes is too small", found=max_logits_bytes, wanted="at least 1")
        self.label_smoothing = check_smoothing(label_smoothing)
        self.max_logits_bytes = max_logits_bytes

    def count(self, batch: Batch) -> int:
        """Return the number of hidden tokens."""
        return int(torch.count_nonzero(target(batch) != IGNORE))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the summed loss and the number of hidden tokens. Raises DataError for labels that do not fit."""
        return Loss(self.loss_sum(model, batch), self.count(batch))

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss alone."""
        _check(batch)
        smoothing = self.label_smoothing if model.training else 0.0
        labels = target(batch).flatten()
        if not hasattr(model, "token_logits"):
            logits = call_model(model, batch, _NOT_INPUTS)
            return cross_entropy_sum(_at_places(logits, batch).flatten(0, 1), labels, smoothing)
        features = self._features(model, batch)
        chosen = _chosen(batch)
        if chosen is not None:
            features, labels = features[chosen], labels[chosen]
        head = cast(HasTokenHead, model).token_logits
        chunk = self._chunk(model)
        if features.shape[0] <= chunk:
            return cross_entropy_sum(head(features), labels, smoothing)
        return chunked_cross_entropy(head, features, labels, chunk, smoothing)

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the loss in nats a hidden token, and its exponential."""
        return {"loss": mean_loss, "perplexity": math.exp(min(mean_loss, 700.0))}

    def evaluator(self) -> MaskedEvaluator:
        """Return what measures `loss`, `perplexity` and `accuracy` of the hidden tokens."""
        return MaskedEvaluator(self)

    def predict(self, model: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return the probabilities of the tokens at each place, (batch, time, vocab_size) of float32."""
        with torch.inference_mode():
            logits: Tensor = answer_to(model, inputs)
            return logits.float().softmax(-1)

    def _features(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return what the output layer reads, (tokens, d_model): of the places given, else of every token."""
        names = input_names(type(model)).known
        inputs = {key: value for key, value in batch.items() if key in names and key not in _NOT_INPUTS}
        features = cast(HasTokenHead, model).forward_features(**inputs)
        return _at_places(features, batch).flatten(0, 1)

    def _chunk(self, model: nn.Module) -> int:
        vocab_size = int(getattr(getattr(model, "config", None), "vocab_size", 1))
        return max(1, self.max_logits_bytes // (4 * vocab_size))


class MaskedEvaluator:
    """Measures `loss`, `perplexity` and `accuracy` of the hidden tokens, from one pass."""

    def __init__(self, task: MaskedLanguageModeling) -> None:
        self._task, self._loss, self._accuracy = task, LossSum(), Accuracy()

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add a batch."""
        _check(batch)
        labels = target(batch).flatten()
        chosen = (labels != IGNORE).nonzero().squeeze(1)
        if hasattr(model, "token_logits"):
            parts = torch.split(self._task._features(model, batch)[chosen], self._task._chunk(model))
            scored: Iterator[Tensor] = (cast(HasTokenHead, model).token_logits(part) for part in parts)
        else:
            logits = _at_places(call_model(model, batch, _NOT_INPUTS), batch).flatten(0, 1)[chosen]
            scored = iter([logits])
        start = 0
        for logits in scored:
            wanted = labels[chosen[start : start + len(logits)]]
            self._loss.add(cross_entropy_sum(logits, wanted), len(wanted))
            self._accuracy.update(logits, wanted)
            start += len(logits)

    def result(self) -> dict[str, float]:
        """Return the numbers. Raises DataError when no token was hidden."""
        return {**self._task.metrics(self._loss.mean()), "accuracy": self._accuracy.result()}


def _at_places(values: Tensor, batch: Batch) -> Tensor:
    """Return `values` (batch, time, n) at the hidden places (batch, places, n), or as they are where none are given."""
    if "masked_positions" not in batch:
        return values
    places = batch["masked_positions"]
    return values.gather(1, places[:, :, None].expand(-1, -1, values.shape[2]))


def _chosen(batch: Batch) -> Tensor | None:
    """Return which tokens are hidden, by number; None where that would make shapes depend on values."""
    labels = batch["labels"]
    if "masked_positions" in batch or torch.compiler.is_compiling() or labels.device.type == "meta":
        return None
    return (labels.flatten() != IGNORE).nonzero().squeeze(1)


def _check(batch: Batch) -> None:
    """Check labels and places in eager code; their values on a CPU only, where it costs no synchronisation."""
    if torch.compiler.is_compiling():
        return
    labels, ids, places = target(batch), batch["input_ids"], batch.get("masked_positions")
    wanted = ids.shape if places is None else places.shape
    if labels.shape != wanted or labels.dtype != torch.int64:
        raise DataError(
            "labels don't fit the tokens",
            found=f"{tuple(labels.shape)} of {labels.dtype}",
            wanted=f"{tuple(wanted)} of torch.int64",
        )
    if places is None:
        return
    if places.dim() != 2 or places.shape[0] != ids.shape[0]:
        raise DataError("masked_positions have the wrong shape", found=tuple(places.shape), wanted=f"({len(ids)}, n)")
    if places.device.type == "cpu" and places.numel():
        low, high = int(places.min()), int(places.max())
        if low < 0 or high >= ids.shape[1]:
            raise DataError(
                "masked_positions go past the text", found=f"{low} to {high}", wanted=f"0 to {ids.shape[1] - 1}"
            )
