"""Language modelling over texts longer than a segment, with a memory of the segments before: for a Transformer-XL.

Batches: `input_ids` and `labels` (batch, time), -100 where none. A row is read in segments of `segment_length`, each
with the memory of those before it; gradients stay inside a segment, as in the paper. `context_ids` (batch, past),
where given, is the text before the row: it is read first, without gradients and without a loss.

So the memory is a function of the batch alone: micro-batches, resumed runs and evaluations need no state, and equal
batches give equal losses. A row should be many segments long, or have its context with it. Not here: `document_ids`,
as a memory reaches over the ends of documents.
Source: Dai et al. 2019, "Transformer-XL", arXiv:1901.02860, section 3.2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError, DataError
from deepseek.nn.losses import IGNORE, check_smoothing, cross_entropy_sum
from deepseek.tasks.inputs import target
from deepseek.tasks.task import Batch, Loss


class SegmentLanguageModeling:
    """Next-token cross-entropy in nats, summed over the labels that are not -100, segment by segment.

    `label_smoothing` is the share of a target that is spread over all tokens, in training only. Raises ConfigError.
    """

    name = "segment_language_modeling"

    def __init__(self, segment_length: int = 128, label_smoothing: float = 0.0) -> None:
        if segment_length < 1:
            raise ConfigError("segment_length is too small", found=segment_length, wanted="at least 1")
        self.segment_length = segment_length
        self.label_smoothing = check_smoothing(label_smoothing)

    def count(self, batch: Batch) -> int:
        """Return the number of target tokens."""
        return int(torch.count_nonzero(target(batch) != IGNORE))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the summed loss and the number of targets. Raises DataError for labels that do not fit."""
        return Loss(self.loss_sum(model, batch), self.count(batch))

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss alone."""
        ids, labels = batch["input_ids"], target(batch)
        if labels.shape != ids.shape:
            raise DataError("labels have the wrong shape", found=tuple(labels.shape), wanted=tuple(ids.shape))
        smoothing = self.label_smoothing if model.training else 0.0
        memory = self._memory(model, batch.get("context_ids"))
        total = torch.zeros((), device=ids.device)
        for part, wanted in zip(self._segments(ids), self._segments(labels), strict=True):
            logits, memory = model(part, memory)
            total = total + cross_entropy_sum(logits.flatten(0, 1), wanted.flatten(), smoothing)
        return total

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the loss in nats a token and the perplexity."""
        return {"loss": mean_loss, "perplexity": math.exp(min(mean_loss, 700.0))}

    def predict(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return next-token probabilities (batch, vocab_size) after `inputs` (batch, time), read in segments."""
        memory: Tensor | None = None
        with torch.inference_mode():
            for part in self._segments(inputs):
                output: Any = model(part, memory)
                memory = output[1]
            logits: Tensor = output[0]
            return logits[:, -1].float().softmax(-1)

    def _segments(self, row: Tensor) -> tuple[Tensor, ...]:
        return torch.split(row, self.segment_length, dim=1)

    def _memory(self, model: nn.Module, context: Tensor | None) -> Tensor | None:
        memory: Tensor | None = None
        if context is not None:
            with torch.no_grad():
                for part in self._segments(context):
                    memory = model(part, memory)[1]
        return memory
