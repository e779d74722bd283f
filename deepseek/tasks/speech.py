"""Speech recognition: features to text, learned by CTC and an attention decoder together, read by one or by both.

Batches: `input_features` (batch, frames, num_mels), `lengths` (batch,) of frames, `labels` (batch, target_time) of
tokens, padded with -100 behind.
Sources: Watanabe et al. 2017, "Hybrid CTC/Attention Architecture", doi:10.1109/JSTSP.2017.2763455; Zhang et al. 2020,
"Unified Streaming and Non-streaming Two-pass End-to-end Model", arXiv:2012.05481 (the second pass).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.conformer import Conformer, ConformerDecoderConfig, ConformerOutput
from deepseek.models.ctc_decoding import Hypothesis, greedy_decode, prefix_beam_search
from deepseek.nn.attention_decoder import AttentionDecoder
from deepseek.nn.ctc import ctc_loss_sum, decoder_inputs_targets, joint_ctc_attention_loss_sum, label_lengths
from deepseek.nn.losses import IGNORE
from deepseek.tasks.task import Batch, Loss

Decoding = Literal["greedy", "beam", "rescore"]


class SpeechRecognition:
    """Joint loss of a Conformer in nats, summed over the tokens of the texts.

    `ctc_weight` is CTC's share, the decoder has the rest; a Conformer without decoder is trained by CTC alone.
    `decoding`: "greedy" is the best path, "beam" prefix-beam search with `beam_size` texts, "rescore" the same texts in
    a second pass, where the decoder's score counts as in training. Raises ConfigError for settings out of range.
    """

    name = "speech_recognition"

    def __init__(
        self,
        ctc_weight: float = 0.3,
        label_smoothing: float = 0.1,
        decoding: Decoding = "greedy",
        beam_size: int = 10,
    ) -> None:
        if not 0 <= ctc_weight <= 1:
            raise ConfigError("ctc_weight is a share", found=ctc_weight, wanted="0 to 1")
        if not 0 <= label_smoothing < 1:
            raise ConfigError("label_smoothing is a share", found=label_smoothing, wanted="0 to below 1")
        if decoding not in ("greedy", "beam", "rescore"):
            raise ConfigError("unknown decoding", found=repr(decoding), wanted="'greedy', 'beam' or 'rescore'")
        if beam_size < 1:
            raise ConfigError("beam_size is too small", found=beam_size, wanted="at least 1")
        self.ctc_weight = ctc_weight
        self.label_smoothing = label_smoothing
        self.decoding = decoding
        self.beam_size = beam_size

    def count(self, batch: Batch) -> int:
        """Return the number of tokens in the texts."""
        return int(label_lengths(batch["labels"]).sum())

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the summed joint loss of the batch."""
        return Loss(self.loss_sum(model, batch), self.count(batch))

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss alone. Raises DataError for a text too long for its recording."""
        config, labels, lengths = _config(model), batch["labels"], batch.get("lengths")
        if config.embedding_dim is None:
            out: ConformerOutput = model(batch["input_features"], lengths)
            return ctc_loss_sum(out.ctc_logits, labels, out.lengths, config.blank_id)
        inputs, _ = decoder_inputs_targets(labels, config.end)
        out = model(batch["input_features"], lengths, inputs)
        return joint_ctc_attention_loss_sum(
            out.ctc_logits,
            cast(Tensor, out.decoder_logits),
            labels,
            out.lengths,
            blank_id=config.blank_id,
            end_id=config.end,
            ctc_weight=self.ctc_weight,
            label_smoothing=self.label_smoothing,
        )

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the loss in nats a token."""
        return {"loss": mean_loss}

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
