"""Speech recognition as a task: the joint loss, learning a made-up language, the three ways to decode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepseek.errors import ConfigError, DataError
from deepseek.models.conformer import Conformer, ConformerConfig
from deepseek.models.ctc_decoding import Hypothesis
from deepseek.nn.ctc import ctc_loss_sum, decoder_inputs_targets, joint_ctc_attention_loss_sum
from deepseek.nn.losses import IGNORE
from deepseek.tasks.speech import SpeechRecognition, decoder_scores

VOCAB, MELS = 7, 8


def toy(**decoder: object) -> Conformer:
    torch.manual_seed(2)
    encoder = {"num_mels": MELS, "num_layers": 1, "d_model": 24, "attention_heads": 2, "conv_kernel": 5, "dropout": 0.0}
    return Conformer(ConformerConfig(encoder=encoder, decoder={"vocab_size": VOCAB, **decoder}))


def spoken(batch: int, seed: int = 0) -> dict[str, Tensor]:
    """Return recordings in a language where a token is a loud mel band for twelve frames, and silence ends it."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, VOCAB - 1, (batch, 3), generator=generator)
    labels[::2, 2] = IGNORE
    features = torch.randn(batch, 54, MELS, generator=generator) * 0.1
    for row in range(batch):
        for place, token in enumerate(labels[row].tolist()):
            if token != IGNORE:
                features[row, 16 * place + 2 : 16 * place + 14, token] += 3
    return {"input_features": features, "lengths": torch.where(labels[:, 2] == IGNORE, 38, 54), "labels": labels}


def texts(labels: Tensor) -> list[list[int]]:
    return [[token for token in row if token != IGNORE] for row in labels.tolist()]


def test_the_loss_is_the_joint_loss_over_the_tokens() -> None:
    model, task, batch = toy(embedding_dim=16).eval(), SpeechRecognition(ctc_weight=0.4, label_smoothing=0.0), spoken(4)
    inputs, _ = decoder_inputs_targets(batch["labels"], VOCAB - 1)
    out = model(batch["input_features"], batch["lengths"], inputs)
    loss = task.loss(model, batch)
    wanted = joint_ctc_attention_loss_sum(
        out.ctc_logits, out.decoder_logits, batch["labels"], out.lengths, blank_id=0, end_id=VOCAB - 1, ctc_weight=0.4
    )
    torch.testing.assert_close(loss.sum, wanted)
    assert loss.count == 2 * 2 + 2 * 3 and task.metrics(1.5) == {"loss": 1.5}


def test_without_decoder_the_loss_is_ctc_alone_and_batches_add_up() -> None:
    model, task, batch = toy().eval(), SpeechRecognition(), spoken(4)
    out = model(batch["input_features"], batch["lengths"])
    torch.testing.assert_close(task.loss_sum(model, batch), ctc_loss_sum(out.ctc_logits, batch["labels"], out.lengths))
    halves = [{name: value[part] for name, value in batch.items()} for part in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(sum(task.loss_sum(model, half) for half in halves), task.loss_sum(model, batch))


def test_a_language_is_learned_and_read_in_three_ways() -> None:
    model, task = toy(embedding_dim=16), SpeechRecognition()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for step in range(120):
        batch = spoken(16, seed=step)
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        (loss.sum / loss.count).backward()
        optimizer.step()
        losses.append(loss.sum.item() / loss.count)
    assert losses[-1] < 0.4 * losses[0]
    fresh = spoken(12, seed=10_000)
    model.eval()
    for decoding in ("greedy", "beam", "rescore"):
        found = SpeechRecognition(decoding=decoding, beam_size=4).predict(model, fresh)
        right = sum(a == b for a, b in zip(found, texts(fresh["labels"]), strict=True))
        assert right >= 10, (decoding, found, texts(fresh["labels"]))


def test_the_decoder_scores_each_text_as_it_would_alone() -> None:
    model, batch = toy(embedding_dim=16).eval(), spoken(1)
    frames, valid = model.encoder(batch["input_features"], batch["lengths"])
    found = [Hypothesis((), 0.0), Hypothesis((1, 2, 3), 0.0), Hypothesis((4,), 0.0)]
    scores = decoder_scores(model.decoder, found, frames[0], valid[0], VOCAB - 1)
    for text, score in zip(found, scores, strict=True):
        ids = torch.tensor([[VOCAB - 1, *text.tokens]])
        log_probs = model(batch["input_features"], batch["lengths"], ids).decoder_logits[0].log_softmax(-1)
        wanted = sum(log_probs[step, token] for step, token in enumerate((*text.tokens, VOCAB - 1)))
        torch.testing.assert_close(score, wanted)


def test_features_alone_are_enough_to_predict() -> None:
    model, batch = toy().eval(), spoken(2)
    full = {"input_features": batch["input_features"], "lengths": torch.tensor([54, 54])}
    task = SpeechRecognition()
    assert task.predict(model, batch["input_features"]) == task.predict(model, full)
    with_decoder = toy(embedding_dim=16).eval()
    second = SpeechRecognition(decoding="rescore", beam_size=3)
    assert second.predict(with_decoder, full["input_features"]) == second.predict(with_decoder, full)


def test_what_cannot_be_is_refused() -> None:
    batch = spoken(2)
    with pytest.raises(DataError, match="more text than frames"):
        SpeechRecognition().loss(toy(), {**batch, "labels": torch.ones(2, 20, dtype=torch.int64)})
    with pytest.raises(ConfigError, match="needs a Conformer with an attention decoder"):
        SpeechRecognition(decoding="rescore").predict(toy().eval(), batch)
    for settings in ({"ctc_weight": 1.5}, {"label_smoothing": 1.0}, {"decoding": "best"}, {"beam_size": 0}):
        with pytest.raises(ConfigError):
            SpeechRecognition(**settings)
