"""Speech recognition: features to text, learned by CTC and an attention decoder together, read by one or by both.

Batches: `input_features` (batch, frames, num_mels), `lengths` (batch,) of frames, `labels` (batch, target_time) of
tokens, padded with -100 behind.
Sources: Watanabe et al. 2017, "Hybrid CTC/Attention Architecture", doi:10.1109/JSTSP.2017.2763455; Zhang et al. 2020,
"Unified Streaming and Non-streaming Two-pass End-to-end Model", arXiv:2012.05481 (the second pass).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.metrics.error_rate import ErrorCount, character_items
from deepseek.models.conformer import Conformer, ConformerDecoderConfig, ConformerOutput
from deepseek.models.ctc_decoding import Hypothesis, greedy_decode, prefix_beam_search
from deepseek.nn.attention_decoder import AttentionDecoder
from deepseek.nn.ctc import ctc_loss_sum, decoder_inputs_targets, joint_ctc_attention_loss_sum, label_lengths
from deepseek.nn.losses import IGNORE, check_smoothing
from deepseek.tasks.task import Batch, Loss, LossSum

Decoding = Literal["greedy", "beam", "rescore"]


class SpeechRecognition:
    """Joint loss of a Conformer in nats, summed over the tokens of the texts.

    `ctc_weight` is CTC's share, the decoder has the rest; a Conformer without decoder is trained by CTC alone.
    `decoding`: "greedy" is the best path, "beam" prefix-beam search with `beam_size` texts, "rescore" the same texts in
    a second pass, where the decoder's score counts as in training. `label_smoothing` is for training alone.
    `to_text` turns tokens into text (a tokenizer's `decode`): evaluation then tells characters and words, not tokens.
    Raises ConfigError for settings out of range.
    """

    name = "speech_recognition"

    def __init__(
        self,
        ctc_weight: float = 0.3,
        label_smoothing: float = 0.1,
        decoding: Decoding = "greedy",
        beam_size: int = 10,
        to_text: Callable[[list[int]], str] | None = None,
    ) -> None:
        if not 0 <= ctc_weight <= 1:
            raise ConfigError("ctc_weight is a share", found=ctc_weight, wanted="0 to 1")
        if decoding not in ("greedy", "beam", "rescore"):
            raise ConfigError("unknown decoding", found=repr(decoding), wanted="'greedy', 'beam' or 'rescore'")
        if beam_size < 1:
            raise ConfigError("beam_size is too small", found=beam_size, wanted="at least 1")
        self.ctc_weight = ctc_weight
        self.label_smoothing = check_smoothing(label_smoothing)
        self.decoding = decoding
        self.beam_size = beam_size
        self.to_text = to_text

    def count(self, batch: Batch) -> int:
        """Return the number of tokens in the texts."""
        return int(label_lengths(batch["labels"]).sum())

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the summed joint loss of the batch."""
        return Loss(self.loss_sum(model, batch), self.count(batch))

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss alone. Raises DataError for a text too long for its recording."""
        return self._loss_sum(model, batch, self._forward(model, batch))

    def _forward(self, model: nn.Module, batch: Batch) -> ConformerOutput:
        config, lengths = _config(model), batch.get("lengths")
        if config.embedding_dim is None:
            out: ConformerOutput = model(batch["input_features"], lengths)
            return out
        inputs, _ = decoder_inputs_targets(batch["labels"], config.end)
        out = model(batch["input_features"], lengths, inputs)
        return out

    def _loss_sum(self, model: nn.Module, batch: Batch, out: ConformerOutput) -> Tensor:
        config, labels = _config(model), batch["labels"]
        if config.embedding_dim is None:
            return ctc_loss_sum(out.ctc_logits, labels, out.lengths, config.blank_id)
        return joint_ctc_attention_loss_sum(
            out.ctc_logits,
            cast(Tensor, out.decoder_logits),
            labels,
            out.lengths,
            blank_id=config.blank_id,
            end_id=config.end,
            ctc_weight=self.ctc_weight,
            label_smoothing=self.label_smoothing if model.training else 0.0,
        )

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the loss in nats a token."""
        return {"loss": mean_loss}

    def evaluator(self) -> SpeechEvaluator:
        """Return what measures the loss and error rates; see `SpeechEvaluator`."""
        return SpeechEvaluator(self)

    def predict(self, model: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> list[list[int]]:
        """Return the tokens of each recording. `inputs`: features, or a batch with `input_features` and `lengths`.

        Raises ConfigError for decoding "rescore" with a model that has no attention decoder.
        """
        batch = {"input_features": inputs} if isinstance(inputs, Tensor) else inputs
        features, lengths, config = batch["input_features"], batch.get("lengths"), _config(model)
        with torch.inference_mode():
            if self.decoding == "rescore":
                return self._second_pass(model, features, lengths)
            out: ConformerOutput = model(features, lengths)
            if self.decoding == "greedy":
                return greedy_decode(out.ctc_logits, out.lengths, config.blank_id)
            found = prefix_beam_search(out.ctc_logits, out.lengths, blank_id=config.blank_id, beam_size=self.beam_size)
            return [list(texts[0].tokens) for texts in found]

    def _second_pass(self, model: nn.Module, features: Tensor, lengths: Tensor | None) -> list[list[int]]:
        if not isinstance(model, Conformer) or model.decoder is None:
            raise ConfigError(
                "decoding 'rescore' needs a Conformer with an attention decoder",
                found=type(model).__name__,
                fix="set decoder.embedding_dim, or decoding 'beam'",
            )
        config = model.config.decoder
        if lengths is None:
            lengths = torch.full(features.shape[:1], features.shape[1], device=features.device)
        frames, valid = model.encoder(features.to(model.ctc_head.weight.dtype), lengths)
        found = prefix_beam_search(
            model.ctc_head(frames), valid.sum(dim=1), blank_id=config.blank_id, beam_size=self.beam_size
        )
        best = []
        for row, texts in enumerate(found):
            scores = decoder_scores(model.decoder, texts, frames[row], valid[row], config.end)
            by_ctc = torch.tensor([text.log_prob for text in texts], device=scores.device)
            joint = self.ctc_weight * by_ctc + (1 - self.ctc_weight) * scores
            best.append(list(texts[int(joint.argmax())].tokens))
        return best


class SpeechEvaluator:
    """Measures `loss` and, by the best path through CTC (greedy decoding, of the same pass), error rates.

    With the task's `to_text`: `cer` and `wer`, of characters and words; without, `token_error_rate`, which is the
    character error rate where tokens are characters. `text_error_rate`: the share of texts with any error.
    """

    def __init__(self, task: SpeechRecognition) -> None:
        self._task, self._loss = task, LossSum()
        self._items, self._words = ErrorCount(), ErrorCount()

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add a batch."""
        out = self._task._forward(model, batch)
        self._loss.add(self._task._loss_sum(model, batch, out), self._task.count(batch))
        found = greedy_decode(out.ctc_logits, out.lengths, _config(model).blank_id)
        for tokens, row in zip(found, batch["labels"].tolist(), strict=True):
            self._add([token for token in row if token != IGNORE], tokens)

    def result(self) -> dict[str, float]:
        """Return the numbers. Raises DataError when no recording had a text."""
        items = self._items.result()
        rates = {"token_error_rate": items.rate}
        if self._task.to_text is not None:
            rates = {"cer": items.rate, "wer": self._words.result().rate}
        return {"loss": self._loss.mean(), **rates, "text_error_rate": self._items.wrong / self._items.texts}

    def _add(self, wanted: list[int], found: list[int]) -> None:
        if self._task.to_text is None:
            self._items.update(wanted, found)
            return
        reference, hypothesis = self._task.to_text(wanted), self._task.to_text(found)
        self._items.update(character_items(reference), character_items(hypothesis))
        self._words.update(reference.split(), hypothesis.split())


def decoder_scores(
    decoder: AttentionDecoder, texts: Sequence[Hypothesis], frames: Tensor, valid: Tensor, end_id: int
) -> Tensor:
    """Return log p(text, end | recording) of the decoder for each text, (texts,) of float32.

    `frames`: (time, d_model) of one recording, `valid` (time,): those that count.
    """
    rows = [torch.tensor(text.tokens, dtype=torch.int64) for text in texts]
    labels = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORE).to(frames.device)
    ids, targets = decoder_inputs_targets(labels, end_id)
    logits = decoder(ids, frames.expand(len(texts), -1, -1), valid[None, None, None])
    losses = F.cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
    return -losses.sum(dim=1)


def _config(model: nn.Module) -> ConformerDecoderConfig:
    return cast(Conformer, model).config.decoder
