"""Each task on made-up data: a few steps make the loss fall and the metric rise; sums and counts are those of parts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepseek.errors import DataError, ModelError
from deepseek.metrics.regression import RegressionErrors
from deepseek.models import build
from deepseek.models.ft_transformer import FTTransformer, FTTransformerConfig
from deepseek.models.lstm import LSTM, LSTMConfig
from deepseek.models.mlp import MLP, MLPConfig
from deepseek.nn.losses import IGNORE, chunked_cross_entropy, cross_entropy_sum
from deepseek.tasks.classification import Classification
from deepseek.tasks.contrastive import Contrastive
from deepseek.tasks.diffusion import Diffusion
from deepseek.tasks.energies_forces import EnergiesForces
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.tasks.masked_lm import MaskedLanguageModeling
from deepseek.tasks.regression import Regression
from deepseek.tasks.segment_language_modeling import SegmentLanguageModeling
from deepseek.tasks.seq2seq import SequenceToSequence, shifted
from deepseek.tasks.task import Batch, Task, evaluate
from tests.toy_gpt import toy_batches, toy_gpt

TOYS = Path(__file__).parent.parent / "toys"


def toy(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = build(TOYS / f"{name}.yaml")
    return type(model)(model.config.replace(**changes)) if changes else model  # type: ignore[operator, union-attr]


def learn(model: nn.Module, task: Task, batches: list[Batch], steps: int, rate: float = 3e-3) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    model.train()
    for step in range(steps):
        loss = task.loss(model, batches[step % len(batches)])
        (loss.sum / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad()


def gains(
    model: nn.Module, task: Task, batches: list[Batch], steps: int, rate: float = 3e-3
) -> tuple[dict[str, float], dict[str, float]]:
    """Return what the task measures on the last batch, which is not learned from, before and after learning."""
    before = evaluate(model, batches[-1:], task)
    learn(model, task, batches[:-1], steps, rate)
    return before, evaluate(model, batches[-1:], task)


def halves(batch: Batch) -> list[Batch]:
    size = len(next(iter(batch.values()))) // 2
    return [{key: value[part] for key, value in batch.items()} for part in (slice(0, size), slice(size, None))]


def adds_up(model: nn.Module, task: Task, batch: Batch) -> None:
    """Check that a batch's loss and count are the sums of its halves'."""
    model.eval()
    whole, parts = task.loss(model, batch), [task.loss(model, part) for part in halves(batch)]
    assert whole.count == sum(part.count for part in parts) == task.count(batch)
    torch.testing.assert_close(whole.sum, parts[0].sum + parts[1].sum, rtol=1e-5, atol=1e-5)


# --- classification of texts, tables and vectors


def texts(rows: int, seed: int) -> Batch:
    """Return texts of tokens 2 to 20 with padding; the class says which of the tokens 1 and 2 is in them more often."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 20, (rows, 12), generator=generator)
    labels = torch.randint(2, (rows,), generator=generator)
    ids[:, 1:6] = torch.where(torch.rand(rows, 5, generator=generator) < 0.8, (labels + 1)[:, None], ids[:, 1:6])
    mask = torch.arange(12) < torch.randint(6, 13, (rows,), generator=generator)[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long(), "labels": labels}


def test_texts_are_classified_by_a_bert_and_an_lstm() -> None:
    batches = [texts(32, seed) for seed in range(6)]
    for model in (
        toy("bert-classification", num_labels=2),
        LSTM(LSTMConfig(vocab_size=20, hidden_size=16, num_layers=1, num_labels=2)),
    ):
        before, after = gains(model, Classification(0.1), batches, 30, 1e-2)
        assert after["loss"] < 0.7 * before["loss"] and after["accuracy"] > 0.85 > before["accuracy"]
        assert after["roc_auc"] > 0.9 and after["f1"] > 0.8 and 0 <= after["calibration_error"] <= 1
    adds_up(model, Classification(), batches[0])


def table(rows: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    numeric, kind = torch.randn(rows, 3, generator=generator), torch.randint(4, (rows, 1), generator=generator)
    return {"numeric": numeric, "categorical": kind, "labels": (numeric[:, 0] + 2 * (kind[:, 0] == 2) > 0.5).long()}


@pytest.mark.parametrize("outputs", [1, 2])
def test_rows_of_a_table_are_classified_and_one_output_is_a_question(outputs: int) -> None:
    torch.manual_seed(0)
    model = FTTransformer(
        FTTransformerConfig(num_numeric=3, cardinalities=[4], num_layers=1, d_model=16, num_heads=2, num_labels=outputs)
    )
    batches = [table(64, seed) for seed in range(6)]
    before, after = gains(model, Classification(), batches, 30, 1e-2)
    assert after["loss"] < 0.7 * before["loss"] and after["accuracy"] > 0.85
    assert after["roc_auc"] > 0.9
    chances = Classification().predict(model, {key: value for key, value in batches[0].items() if key != "labels"})
    torch.testing.assert_close(chances.sum(-1), torch.ones(64))
    assert (chances.argmax(-1) == batches[0]["labels"]).double().mean() > 0.85
    adds_up(model, Classification(), batches[0])


def test_one_output_has_the_loss_of_two_with_a_difference() -> None:
    logits, labels = torch.randn(5, 1), torch.tensor([0, 1, 1, IGNORE, 0])
    model = MLP(MLPConfig(input_shape=[1], hidden_sizes=[], num_labels=1))
    nn.init.ones_(model.head.weight)
    for smoothing in (0.0, 0.2):
        loss = Classification(smoothing).loss(model.train(), {"features": logits, "labels": labels})
        pair = torch.cat([torch.zeros(5, 1), logits], dim=1)
        wanted = F.cross_entropy(pair, labels, reduction="sum", label_smoothing=smoothing)
        torch.testing.assert_close(loss.sum, wanted)
        assert loss.count == 4


def test_top_five_is_measured_for_many_classes_and_smoothing_is_for_training() -> None:
    torch.manual_seed(0)
    model = MLP(MLPConfig(input_shape=[4], hidden_sizes=[8], num_labels=9))
    batch = {"features": torch.randn(20, 4), "labels": torch.randint(9, (20,))}
    found = evaluate(model, [batch], Classification(0.3))
    assert set(found) == {"loss", "accuracy", "top5_accuracy", "macro_f1", "calibration_error"}
    assert found["top5_accuracy"] >= found["accuracy"]
    assert found["loss"] == pytest.approx(
        float(F.cross_entropy(model(batch["features"]), batch["labels"]).detach()), rel=1e-6
    )
    mixed = {"features": batch["features"], "labels": F.one_hot(batch["labels"], 9).float()}
    assert evaluate(model, [mixed], Classification()) == pytest.approx(found)


def test_wrong_batches_of_a_classifier_are_refused() -> None:
    model = MLP(MLPConfig(input_shape=[4], hidden_sizes=[], num_labels=3))
    features = torch.randn(2, 4)
    for batch, named in (
        ({"features": features, "labels": torch.tensor([0, 3])}, "unknown class"),
        ({"features": features, "labels": torch.tensor([0])}, "wrong shape"),
        ({"features": features}, "no labels"),
        ({"inputs": features, "mask": features, "labels": torch.tensor([0, 1])}, "lacks what MLP reads(.|\n)*features"),
    ):
        with pytest.raises(DataError, match=named):
            Classification().loss(model, batch)
    plain = nn.Sequential(nn.Linear(4, 3))  # takes one tensor of any name
    assert Classification().loss(plain, {"x": features, "labels": torch.tensor([0, 1])}).count == 2


# --- hidden tokens


def hidden(rows: int, seed: int, places: bool) -> Batch:
    """Return rows of one token each, of four kinds, some of it replaced by the mask token 3."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 8, (rows, 1), generator=generator).expand(rows, 12)
    where = torch.stack([torch.randperm(12, generator=generator)[:3] for _ in range(rows)])
    covered = ids.scatter(1, where, 3)
    wanted = ids.gather(1, where)
    wanted[0, 2] = IGNORE
    if places:
        return {"input_ids": covered, "masked_positions": where, "labels": wanted}
    return {"input_ids": covered, "labels": torch.full_like(ids, IGNORE).scatter(1, where, wanted)}


def test_hidden_tokens_are_learned_and_both_forms_of_a_batch_are_one() -> None:
    model, task = toy("bert-masked-lm"), MaskedLanguageModeling()
    batches = [hidden(32, seed, places=True) for seed in range(5)]
    before, after = gains(model, task, batches, 40, 1e-2)
    assert after["loss"] < 0.7 * before["loss"] and after["accuracy"] > before["accuracy"] + 0.2
    dense = hidden(32, 4, places=False)
    assert evaluate(model, [dense], task) == pytest.approx(after, rel=1e-6)
    for batch in (dense, batches[-1]):
        adds_up(model, task, batch)
        logits = model(batch["input_ids"]).detach()
        wanted = F.cross_entropy(logits.flatten(0, 1), dense["labels"].flatten(), reduction="sum")
        torch.testing.assert_close(task.loss_sum(model, batch).detach(), wanted)
        chunked = MaskedLanguageModeling(max_logits_bytes=61 * 4 * 7)
        torch.testing.assert_close(chunked.loss_sum(model, batch).detach(), wanted)
        assert evaluate(model, [batch], chunked) == pytest.approx(after, rel=1e-6)
    assert task.count(dense) == 32 * 3 - 1


def test_the_head_sees_hidden_tokens_alone_with_the_gradient_of_all() -> None:
    model, task, batch = toy("bert-masked-lm").eval(), MaskedLanguageModeling(), hidden(8, 0, places=False)
    sizes: list[int] = []
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel() // 61))
    task.loss_sum(model, batch).backward()
    handle.remove()
    assert sizes == [23]
    gathered = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    cross_entropy_sum(model(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten()).backward()
    for name, gradient in gathered.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-4, atol=1e-5)


def test_a_model_without_a_token_head_is_trained_on_its_logits() -> None:
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20))
    for places in (True, False):
        batch = hidden(4, 0, places)
        assert MaskedLanguageModeling().loss(model, batch).count == 11
        assert evaluate(model, [batch], MaskedLanguageModeling())["loss"] > 0
    with pytest.raises(DataError, match="go past"):
        MaskedLanguageModeling().loss(model, {**hidden(4, 0, True), "masked_positions": torch.full((4, 3), 12)})
    with pytest.raises(DataError, match="don't fit"):
        MaskedLanguageModeling().loss(model, {**hidden(4, 0, False), "labels": torch.zeros(4, 3, dtype=torch.int64)})
    with pytest.raises(ModelError, match="no masked-token head"):
        toy("bert-classification").token_logits(torch.zeros(1, 16))


# --- values


def line(rows: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, 3, generator=generator)
    labels = 50 + 10 * (features[:, :1] - features[:, 1:2].square())
    labels[::7] = math.nan
    return {"features": features, "labels": labels}


@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
def test_values_are_learned_in_the_datas_unit(loss: Any) -> None:
    torch.manual_seed(0)
    model = MLP(MLPConfig(input_shape=[3], hidden_sizes=[32], num_labels=1))
    task, batches = Regression(loss, shift=50.0, scale=20.0), [line(64, seed) for seed in range(6)]
    before, after = gains(model, task, batches, 30, 2e-2)
    assert after["loss"] < 0.5 * before["loss"] and after["r2"] > 0.6 and after["mae"] < before["mae"]
    errors = RegressionErrors()
    errors.update(task.predict(model, batches[-1]["features"]), batches[-1]["labels"])
    assert errors.result().report() == pytest.approx({key: after[key] for key in ("mae", "rmse", "r2")}, rel=1e-5)
    assert task.count(batches[0]) == 64 - 10
    adds_up(model, task, batches[0])
    flat = {**batches[0], "labels": batches[0]["labels"].squeeze(1)}
    torch.testing.assert_close(task.loss_sum(model, flat), task.loss_sum(model, batches[0]))
    for wrong in (torch.zeros(64, dtype=torch.int64), torch.zeros(64, 2), torch.zeros(3)):
        with pytest.raises(DataError, match="labels"):
            task.loss(model, {**batches[0], "labels": wrong})


# --- energies and forces


def springs(rows: int, seed: int) -> Batch:
    """Return pairs and threes of atoms held by springs of length 1.2, a place of padding behind the pairs."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.tensor([[1, 6, 8], [6, 6, 0]]).repeat(rows // 2, 1)
    corners = torch.tensor([[0.0, 0.0, 0.0], [1.2, 0.0, 0.0], [0.6, 1.0, 0.0]])
    positions = (corners + 0.2 * torch.randn(rows, 3, 3, generator=generator)).requires_grad_()
    present = numbers > 0
    pair = (present[:, :, None] & present[:, None, :]) & ~torch.eye(3, dtype=torch.bool)
    apart = torch.where(pair, (positions[:, :, None] - positions[:, None]).square().sum(-1), 1.0).sqrt()
    energies = (pair * (apart - 1.2).square()).sum(dim=(1, 2))
    (slope,) = torch.autograd.grad(energies.sum(), positions)
    forces = torch.where(present[:, :, None], -slope, math.nan)  # what stands at padding is not read
    return {"atomic_numbers": numbers, "positions": positions.detach(), "energies": energies.detach(), "forces": forces}


def test_energies_and_forces_are_learned_together() -> None:
    model, task, batches = toy("schnet"), EnergiesForces(), [springs(16, seed) for seed in range(5)]
    before, after = gains(model, task, batches, 30, 5e-3)
    assert after["loss"] < 0.6 * before["loss"] and after["force_mae"] < before["force_mae"]
    assert set(after) == {"loss", "energy_mae", "energy_mae_per_atom", "force_mae"}
    adds_up(model, task, batches[0])
    energies, forces = task.predict(model, batches[-1])
    assert not energies.requires_grad and not forces.requires_grad
    present = batches[-1]["atomic_numbers"] > 0
    assert after["energy_mae"] == pytest.approx(float((energies - batches[-1]["energies"]).abs().mean()), rel=1e-5)
    assert after["force_mae"] == pytest.approx(float((forces - batches[-1]["forces"])[present].abs().mean()), rel=1e-5)
    by_hand = torch.zeros(())
    for row in range(16):
        atoms = int(present[row].sum())
        by_hand += ((energies - batches[-1]["energies"])[row] / atoms) ** 2
        by_hand += (forces - batches[-1]["forces"])[row, :atoms].square().mean()
    assert after["loss"] == pytest.approx(float(by_hand) / 16, rel=1e-5)


def test_energies_alone_need_no_forces_and_wrong_targets_are_refused() -> None:
    model, batch = toy("schnet"), springs(4, 0)
    alone = {key: value for key, value in batch.items() if key != "forces"}
    found = evaluate(model, [alone], EnergiesForces(force_weight=0.0))
    assert "force_mae" not in found and found["energy_mae"] > 0
    with pytest.raises(DataError, match="no forces"):
        EnergiesForces().loss(model, alone)
    with pytest.raises(DataError, match="energies don't fit"):
        EnergiesForces().loss(model, {**batch, "energies": batch["energies"][:, None]})
    with pytest.raises(ModelError, match="gives no forces"):
        EnergiesForces().loss(nn.Linear(1, 1), batch)


# --- diffusion


def two_images(rows: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (rows,), generator=generator)
    return {"latents": (labels * 2 - 1.0)[:, None, None, None] + torch.zeros(rows, 3, 8, 8), "labels": labels}


@pytest.mark.parametrize("objective", ["noise", "velocity", "flow"])
def test_what_is_diffused_is_learned_and_sampled(objective: Any) -> None:
    flow = objective == "flow"
    model = toy("dit", learn_sigma=False, num_classes=2, timestep_scale=1000.0 if flow else 1.0)
    task = Diffusion(objective, schedule="cosine", steps=100, sample_steps=10, label_dropout=0.0)
    batches = [two_images(32, seed) for seed in range(5)]
    before, after = gains(model, task, batches, 30, 1e-2)
    assert after["loss"] < 0.5 * before["loss"]
    assert evaluate(model, batches[-1:], task) == after  # always the same noise
    samples = task.predict(model.eval(), torch.tensor([0, 1] * 4))
    means = samples.mean(dim=(1, 2, 3)).view(4, 2)
    assert samples.shape == (8, 3, 8, 8) and float((means[:, 1] - means[:, 0]).mean()) > 0.2


def test_a_learned_variance_is_trained_too_and_other_shapes_are_refused() -> None:
    model, batch = toy("dit"), two_images(4, 0)
    plain, weighted = Diffusion(variance_weight=0.0), Diffusion(variance_weight=2.0)
    with torch.no_grad():
        model.output.bias.normal_()
    model.eval()
    found = [task.losses(model, batch, torch.Generator().manual_seed(1)) for task in (plain, weighted)]
    assert bool((found[1] > found[0]).all())
    with pytest.raises(ModelError, match="learn_sigma: false"):
        Diffusion("flow").loss(model, batch)
    with pytest.raises(DataError, match="latents or pixel_values"):
        Diffusion().loss(model, {"labels": batch["labels"]})


# --- pairs


def captions(rows: int, seed: int) -> Batch:
    """Return images of one brightness each, and texts that say it."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randperm(rows, generator=generator)
    pixels = (kind / rows * 4 - 2)[:, None, None, None] + 0.01 * torch.randn(rows, 3, 30, 30, generator=generator)
    ids = torch.stack([kind + 3, kind + 3, torch.full((rows,), 96)], dim=1)
    return {"input_ids": ids, "pixel_values": pixels}


def test_texts_find_their_images() -> None:
    model, batches = toy("clip"), [captions(8, seed) for seed in range(3)]
    before, after = gains(model, Contrastive(), batches, 30, 3e-3)
    assert after["loss"] < 0.8 * before["loss"]
    assert after["text_to_image_recall5"] >= before["text_to_image_recall5"]
    assert after["text_to_image_recall1"] > 0.2 and after["image_to_text_recall10"] == 1.0
    output = model(**batches[-1])
    cosines = output.text_embeds @ output.image_embeds.T
    hits = cosines.argmax(dim=1) == torch.arange(8)
    assert after["text_to_image_recall1"] == pytest.approx(float(hits.double().mean()))
    with pytest.raises(DataError, match="all its inputs"):
        Contrastive().loss(model, {**batches[0], "pixel_values": batches[0]["pixel_values"][:3]})


# --- sequence to sequence


def copies(rows: int, seed: int) -> Batch:
    """Return texts whose answer is their first two tokens and the end token; every other answer is shorter."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 13, (rows, 4), generator=generator)
    labels = torch.cat([ids[:, :2], torch.ones(rows, 1, dtype=torch.int64)], dim=1)
    labels[::2, 1:] = torch.tensor([1, IGNORE])
    ids[::2, 3] = 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def test_answers_are_learned_and_written() -> None:
    model, task = toy("t5"), SequenceToSequence(0.1, generate=True)
    batches = [copies(32, seed) for seed in range(6)]
    before, after = gains(model, task, batches, 60, 1e-2)
    assert after["loss"] < 0.6 * before["loss"] and after["token_accuracy"] > before["token_accuracy"] + 0.2
    assert after["token_error_rate"] < before["token_error_rate"]
    adds_up(model, task, batches[0])
    assert task.count(batches[0]) == 16 * 3 + 16 * 2
    letters = SequenceToSequence(generate=True, to_text=lambda tokens: "".join(map(chr, (64 + t for t in tokens))))
    found = evaluate(model, batches[-1:], letters)
    assert found["cer"] == pytest.approx(after["token_error_rate"]) and found["wer"] >= 0


def test_the_decoder_reads_the_labels_moved_by_one() -> None:
    labels = torch.tensor([[7, 8, 1], [9, 1, IGNORE]])
    assert shifted(labels, 96, 95).tolist() == [[96, 7, 8], [96, 9, 1]]
    model, features = toy("whisper").eval(), torch.randn(2, 8, 16)
    loss = SequenceToSequence().loss(model, {"input_features": features, "labels": labels})
    logits = model(features, shifted(labels, model.config.start_id, model.config.pad_id))
    torch.testing.assert_close(loss.sum, F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
    with pytest.raises(DataError, match="rows of tokens"):
        SequenceToSequence().loss(model, {"input_features": features, "labels": labels[0]})
    with pytest.raises(ModelError, match="what the decoder begins with"):
        SequenceToSequence().loss(nn.Linear(1, 1), {"input_features": features, "labels": labels})


# --- language models


def test_a_memory_reaches_over_segments() -> None:
    model, task = toy("transformer_xl"), SegmentLanguageModeling(segment_length=4)
    batches: list[Batch] = list(toy_batches(6, batch_size=8, time=12))
    before, after = gains(model, task, batches, 30, 1e-2)
    assert after["loss"] < 0.8 * before["loss"] and after["perplexity"] == pytest.approx(math.exp(after["loss"]))
    adds_up(model, task, batches[0])
    ids, labels = batches[0]["input_ids"], batches[0]["labels"]
    model.eval()
    whole = SegmentLanguageModeling(segment_length=12).loss_sum(model, batches[0])
    torch.testing.assert_close(task.loss_sum(model, batches[0]), whole)  # the memory holds all of a row this short
    behind = {"input_ids": ids[:, 8:], "labels": labels[:, 8:], "context_ids": ids[:, :8]}
    early = {"input_ids": ids[:, :8], "labels": labels[:, :8]}
    torch.testing.assert_close(task.loss_sum(model, behind) + task.loss_sum(model, early), whole)
    torch.testing.assert_close(task.predict(model, ids), model(ids).logits[:, -1].softmax(-1).detach())


@pytest.mark.parametrize(
    "settings", [{"label_smoothing": 0.1}, {"z_loss": 0.01}, {"label_smoothing": 0.2, "z_loss": 0.1}]
)
def test_smoothing_and_z_loss_in_chunks_are_those_of_the_whole(settings: dict[str, float]) -> None:
    model, batch = toy_gpt(), toy_batches(1)[0]
    batch["labels"][1, 3:] = IGNORE
    logits, labels = model(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten()
    wanted = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=settings.get("label_smoothing", 0.0))
    squares = logits[labels != IGNORE].exp().sum(-1).log().square().sum()
    wanted = wanted + settings.get("z_loss", 0.0) * squares
    found = LanguageModeling(**settings).loss_sum(model.train(), batch)
    torch.testing.assert_close(found, wanted)
    chunks = LanguageModeling(max_logits_bytes=48 * 4 * 5, **settings)
    torch.testing.assert_close(chunks.loss_sum(model, batch), wanted)
    plain = F.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(chunks.loss_sum(model.eval(), batch), plain)


def test_gradients_of_chunks_are_those_of_the_whole() -> None:
    head, features, labels = nn.Linear(4, 9), torch.randn(10, 4, requires_grad=True), torch.randint(9, (10,))
    labels[3] = IGNORE
    parts = chunked_cross_entropy(head, features, labels, 3, 0.1, 0.05)
    whole = cross_entropy_sum(head(features), labels, 0.1, 0.05)
    inputs = [features, *head.parameters()]
    for one, other in zip(torch.autograd.grad(parts, inputs), torch.autograd.grad(whole, inputs), strict=True):
        torch.testing.assert_close(one, other)


# --- for a compiler


@pytest.mark.parametrize("name", ["classification", "masked_lm", "diffusion"])
def test_losses_are_one_graph(name: str) -> None:
    """Traced without code generation, which is what costs."""
    cases: dict[str, tuple[Any, Task, Batch]] = {
        "classification": (toy("bert-classification"), Classification(0.1), texts(4, 0)),
        "masked_lm": (toy("bert-masked-lm"), MaskedLanguageModeling(0.1), hidden(4, 0, True)),
        "diffusion": (toy("dit"), Diffusion(), two_images(4, 0)),
    }
    model, task, batch = cases[name]
    model.train()
    torch.manual_seed(1)
    compiled = torch.compile(task.loss_sum, fullgraph=True, dynamic=False, backend="eager")(model, batch)
    torch.manual_seed(1)
    torch.testing.assert_close(compiled, task.loss_sum(model, batch), rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
