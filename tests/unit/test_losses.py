"""Losses: the chunked form equals the whole one, in value and in gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from deepseek.nn.losses import IGNORE, chunked_cross_entropy, cross_entropy_sum
from deepseek.tasks.language_modeling import LanguageModeling
from tests.toy_gpt import toy_batches, toy_gpt


def test_the_sum_is_that_of_negative_log_probabilities_without_ignored_labels() -> None:
    logits, labels = torch.randn(5, 7), torch.tensor([3, IGNORE, 0, 6, IGNORE])
    wanted = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        if label != IGNORE:
            wanted += math.log(sum(math.exp(value) for value in row)) - row[label]
    assert float(cross_entropy_sum(logits, labels)) == pytest.approx(wanted, rel=1e-5)
    assert cross_entropy_sum(logits.bfloat16(), labels).dtype is torch.float32
    assert float(cross_entropy_sum(logits, torch.full((5,), IGNORE))) == 0.0


@pytest.mark.parametrize("chunk", [1, 4, 5, 16, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_chunked_equals_whole_in_value_and_gradient(chunk: int, bias: bool) -> None:
    head = nn.Linear(6, 11, bias=bias)
    features, labels = torch.randn(16, 6, requires_grad=True), torch.randint(11, (16,))
    labels[[2, 9, 10]] = IGNORE
    whole = cross_entropy_sum(head(features), labels)
    wanted = torch.autograd.grad(whole, [features, *head.parameters()])
    chunked = chunked_cross_entropy(head, features, labels, chunk)
    found = torch.autograd.grad(chunked, [features, *head.parameters()])
    torch.testing.assert_close(chunked, whole)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(chunked_cross_entropy(head, features, labels, chunk), whole)


def test_logits_of_a_chunk_are_never_more_than_asked_for() -> None:
    rows: list[int] = []
    head = nn.Linear(6, 11)
    head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[0]))
    features = torch.randn(17, 6, requires_grad=True)
    chunked_cross_entropy(head, features, torch.randint(11, (17,)), 5).backward()
    assert max(rows) == 5 and rows.count(5) == 6


def test_the_task_gives_the_same_loss_in_chunks_tied_weights_and_all() -> None:
    batch, gradients, losses = toy_batches(1)[0], [], []
    batch["labels"][0, :5] = IGNORE
    for max_logits_bytes in (1 << 30, 48 * 4 * 7, 1):
        model = toy_gpt()
        loss = LanguageModeling(max_logits_bytes).loss(model, batch)
        loss.sum.backward()
        assert loss.count == 4 * 12 - 5
        losses.append(float(loss.sum.detach()))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert losses[1:] == [pytest.approx(losses[0], rel=1e-6)] * 2
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], atol=1e-4, rtol=1e-4)
