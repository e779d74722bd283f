"""Sequence to sequence: a text, or a recording, to a text, one token after the other.

Batches: the encoder's inputs under the model's names (`input_ids` and `attention_mask` of a T5, `input_features` of a
Whisper), and `labels` (batch, target_time): the answer's tokens, its end token among them, -100 behind. The decoder
reads the labels moved by one, the model's `start_id` in front (teacher forcing), unless the batch has
`decoder_input_ids`.
Source: Sutskever et al. 2014, "Sequence to Sequence Learning with Neural Networks", arXiv:1409.3215.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError, DataError, ModelError
from deepseek.metrics.classification import Accuracy
from deepseek.metrics.error_rate import ErrorCount, character_items
from deepseek.nn.losses import IGNORE, check_smoothing, cross_entropy_sum
from deepseek.tasks.inputs import call_model, input_names, target
from deepseek.tasks.task import Batch, Loss, LossSum


class SequenceToSequence:
    """Cross-entropy in nats, summed over the answers' tokens.

    `label_smoothing` is the share of a target that is spread over all tokens, in training only. With `generate` an
    evaluation also lets the model write its answers, of at most `max_new_tokens` (null: the longest label of the
    batch, and a half more), and measures the edits they need: slow. `to_text` turns tokens into text (a tokenizer's
    `decode`): these are then edits of characters and words. Raises ConfigError for settings out of range.
    """

    name = "seq2seq"

    def __init__(
        self,
        label_smoothing: float = 0.0,
        generate: bool = False,
        max_new_tokens: int | None = None,
        to_text: Callable[[list[int]], str] | None = None,
    ) -> None:
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ConfigError("max_new_tokens is too small", found=max_new_tokens, wanted="at least 1, or null")
        self.label_smoothing = check_smoothing(label_smoothing)
        self.generate, self.max_new_tokens, self.to_text = generate, max_new_tokens, to_text

    def count(self, batch: Batch) -> int:
        """Return the number of the answers' tokens."""
        return int(torch.count_nonzero(target(batch) != IGNORE))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the summed loss and the number of tokens. Raises DataError for labels that do not fit."""
        return Loss(self.loss_sum(model, batch), self.count(batch))

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss alone."""
        smoothing = self.label_smoothing if model.training else 0.0
        return cross_entropy_sum(_logits(model, batch).flatten(0, 1), target(batch).flatten(), smoothing)

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the loss in nats a token and the perplexity."""
        return {"loss": mean_loss, "perplexity": math.exp(min(mean_loss, 700.0))}

    def evaluator(self) -> SequenceEvaluator:
        """Return what measures the loss, the share of right tokens and, with `generate`, error rates."""
        return SequenceEvaluator(self)

    def predict(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> list[list[int]]:
        """Return the answer to each row, without start, end and padding tokens. Raises ModelError."""
        with torch.inference_mode():
            return self._answers(model, inputs, self.max_new_tokens)

    def _answers(self, model: nn.Module, inputs: Mapping[str, Tensor], max_new_tokens: int | None) -> list[list[int]]:
        config, write = getattr(model, "config", None), getattr(model, "generate", None)
        if write is None or not hasattr(config, "eos_id"):
            raise ModelError(
                "the model can't write answers",
                found=type(model).__name__,
                wanted="a method generate and config.eos_id, as T5 and Whisper have",
            )
        names = input_names(type(model))
        kept = {
            key: value
            for key, value in inputs.items()
            if key not in ("labels", "decoder_input_ids") and (names.takes_any or key in names.known)
        }
        limit = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        return [_answer(row[1:], config) for row in write(**kept, **limit).tolist()]


class SequenceEvaluator:
    """Measures `loss`, `perplexity` and `token_accuracy` (the right token after the right ones before it).

    With the task's `generate`: `token_error_rate` of the answers that the model writes, or `cer` and `wer` where the
    task has `to_text`; and `text_error_rate`, the share of answers with any error.
    """

    def __init__(self, task: SequenceToSequence) -> None:
        self._task, self._loss, self._accuracy = task, LossSum(), Accuracy()
        self._items, self._words = ErrorCount(), ErrorCount()

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add a batch."""
        logits, labels = _logits(model, batch).flatten(0, 1), target(batch)
        self._loss.add(cross_entropy_sum(logits, labels.flatten()), self._task.count(batch))
        self._accuracy.update(logits, labels.flatten())
        if not self._task.generate:
            return
        limit = self._task.max_new_tokens or labels.shape[1] * 3 // 2 + 1
        longest = getattr(getattr(model, "config", None), "max_length", None)
        found = self._task._answers(model, batch, limit if longest is None else min(limit, longest))
        for answer, row in zip(found, labels.tolist(), strict=True):
            self._add(_answer([token for token in row if token != IGNORE], getattr(model, "config", None)), answer)

    def result(self) -> dict[str, float]:
        """Return the numbers. Raises DataError when there was no token."""
        found = {**self._task.metrics(self._loss.mean()), "token_accuracy": self._accuracy.result()}
        if not self._task.generate:
            return found
        rate = self._items.result().rate
        if self._task.to_text is None:
            found["token_error_rate"] = rate
        else:
            found |= {"cer": rate, "wer": self._words.result().rate}
        return {**found, "text_error_rate": self._items.wrong / self._items.texts}

    def _add(self, wanted: list[int], found: list[int]) -> None:
        if self._task.to_text is None:
            self._items.update(wanted, found)
            return
        reference, hypothesis = self._task.to_text(wanted), self._task.to_text(found)
        self._items.update(character_items(reference), character_items(hypothesis))
        self._words.update(reference.split(), hypothesis.split())


def shifted(labels: Tensor, start_id: int, pad_id: int) -> Tensor:
    """Return what a decoder reads that shall say `labels` (batch, time): the start token, then all but the last."""
    start = labels.new_full((labels.shape[0], 1), start_id)
    return torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORE, pad_id)], dim=1)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    labels = target(batch)
    if labels.dim() != 2 or labels.dtype != torch.int64:
        raise DataError(
            "labels must be rows of tokens", found=f"{tuple(labels.shape)} of {labels.dtype}", wanted="(batch, time)"
        )
    inputs = dict(batch)
    if "decoder_input_ids" not in inputs:
        config: Any = getattr(model, "config", None)
        if not hasattr(config, "start_id") or not hasattr(config, "pad_id"):
            raise ModelError(
                "the model's config says not what the decoder begins with",
                found=type(model).__name__,
                wanted="start_id and pad_id",
                fix="put decoder_input_ids into the batch",
            )
        inputs["decoder_input_ids"] = shifted(labels, config.start_id, config.pad_id)
    logits: Tensor = call_model(model, inputs)
    return logits


def _answer(tokens: list[int], config: Any) -> list[int]:
    """Return the tokens before the end token."""
    return tokens[: tokens.index(config.eos_id)] if config.eos_id in tokens else tokens
