"""Tasks: what a loss sums and counts, and what is evaluated."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepseek.errors import DataError
from deepseek.models import build
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.tasks.supervised import Supervised
from deepseek.tasks.task import mean_loss, to_device
from tests.toy_gpt import toy_batches, toy_gpt
from tests.toy_language_model import VOCABULARY, ToyLanguageModel


def test_the_language_models_loss_is_the_sum_over_targets() -> None:
    model, batch = toy_gpt(), toy_batches(1)[0]
    batch["labels"][1, 3:] = -100
    loss = LanguageModeling().loss(model, batch)
    wanted = F.cross_entropy(model(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten(), reduction="sum")
    torch.testing.assert_close(loss.sum, wanted)
    assert loss.count == LanguageModeling().count(batch) == 4 * 12 - 9


def test_documents_of_a_batch_reach_the_model() -> None:
    model, batch = toy_gpt(), toy_batches(1)[0]
    documents = torch.arange(12).div(5, rounding_mode="floor").expand(4, 12)
    apart = LanguageModeling().loss(model, {**batch, "document_ids": documents})
    together = LanguageModeling().loss(model, batch)
    assert abs(float((apart.sum - together.sum).detach())) > 0.1


def test_any_model_from_ids_to_logits_will_do() -> None:
    ids = torch.randint(VOCABULARY, (2, 9))
    model = ToyLanguageModel()
    loss = LanguageModeling().loss(model, {"input_ids": ids[:, :-1], "labels": ids[:, 1:]})
    wanted = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(loss.sum, wanted)


def test_predictions_are_probabilities_of_the_next_token() -> None:
    model, ids = toy_gpt(), torch.randint(48, (3, 7))
    found = LanguageModeling().predict(model, ids)
    assert found.shape == (3, 48)
    torch.testing.assert_close(found.sum(-1), torch.ones(3))
    torch.testing.assert_close(found, model(ids)[:, -1].softmax(-1).detach())


def test_metrics_have_the_perplexity_and_do_not_overflow() -> None:
    assert LanguageModeling().metrics(math.log(20)) == {"loss": math.log(20), "perplexity": pytest.approx(20)}
    assert math.isfinite(LanguageModeling().metrics(1e6)["perplexity"])


@pytest.mark.parametrize("as_dict", [True, False])
def test_supervised_takes_pairs_and_dicts_and_weighs_batches_by_their_samples(as_dict: bool) -> None:
    model, task = nn.Linear(3, 2), Supervised(nn.CrossEntropyLoss())
    inputs, targets = torch.randn(10, 3), torch.randint(2, (10,))
    parts = [(inputs[:3], targets[:3]), (inputs[3:], targets[3:])]
    batches = [{"inputs": x, "targets": y} for x, y in parts] if as_dict else parts
    whole = F.cross_entropy(model(inputs), targets)
    assert mean_loss(model, batches, task) == pytest.approx(float(whole.detach()), rel=1e-6)
    assert [task.count(batch) for batch in batches] == [3, 7]
    torch.testing.assert_close(task.predict(model, inputs), model(inputs).detach())
    assert task.metrics(0.5) == {"loss": 0.5}


def test_evaluation_keeps_the_mode_makes_no_gradient_and_needs_data() -> None:
    model = toy_gpt(dropout=0.5).train()
    batches = toy_batches(2)
    first = mean_loss(model, batches, LanguageModeling())
    assert model.training and first == mean_loss(model, batches, LanguageModeling(), torch.device("cpu"))
    assert all(p.grad is None for p in model.parameters())
    empty = {"input_ids": batches[0]["input_ids"], "labels": torch.full((4, 12), -100)}
    for nothing in ([], [empty]):
        with pytest.raises(DataError, match="nothing to evaluate"):
            mean_loss(model, nothing, LanguageModeling())
    assert model.training


def test_moving_a_batch_keeps_its_shape() -> None:
    batch = {"a": torch.zeros(2), "b": [torch.zeros(1), (torch.zeros(3), "text")]}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"].device.type == moved["b"][0].device.type == moved["b"][1][0].device.type == "meta"
    assert moved["b"][1][1] == "text" and isinstance(moved["b"][1], tuple)


def test_a_mixture_of_experts_is_trained_towards_balance() -> None:
    torch.manual_seed(0)
    model = build(Path(__file__).parent.parent / "toys" / "deepseek_moe.yaml").train()
    ids = torch.randint(model.config.vocab_size, (2, 12))  # type: ignore[union-attr, arg-type]
    batch = {"input_ids": ids, "labels": ids.roll(-1, 1)}
    plain = LanguageModeling(balance_weight=0.0).loss(model, batch)
    balanced = LanguageModeling(balance_weight=0.5).loss(model, batch)
    wanted = plain.sum + 0.5 * model.forward_balanced(ids).balance_loss * 24  # type: ignore[operator]
    torch.testing.assert_close(balanced.sum, wanted)
    assert balanced.count == plain.count == 24
    model.eval()
    torch.testing.assert_close(LanguageModeling(balance_weight=0.5).loss(model, batch).sum, plain.sum)
