"""Distillation against its formula, written out by hand in float64, and what surrounds it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError, ModelError
from deepseek.models.gpt import GPT, GPTConfig
from deepseek.models.mlp import MLP, MLPConfig
from deepseek.tasks import Classification, LanguageModeling, Regression
from deepseek.tasks.distillation import Distillation, softened_divergence
from deepseek.tasks.task import evaluate

BATCH = {"features": torch.randn(6, 4), "labels": torch.tensor([0, 2, 1, -100, 2, 0])}


def mlp(seed: int, labels: int = 3) -> MLP:
    torch.manual_seed(seed)
    return MLP(MLPConfig(input_shape=[4], hidden_sizes=[8], num_labels=labels))


def by_hand(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, soft_share: float) -> float:
    """Sum over the samples with a label, one at a time, with logarithms of plain exponentials."""
    total = 0.0
    for s, t, label in zip(student.double().tolist(), teacher.double().tolist(), labels.tolist(), strict=True):
        if label == -100:
            continue
        p = torch.tensor([v / temperature for v in t], dtype=torch.float64).exp()
        q = torch.tensor([v / temperature for v in s], dtype=torch.float64).exp()
        p, q = p / p.sum(), q / q.sum()
        divergence = float((p * (p.log() - q.log())).sum())
        hard = -float(torch.tensor(s, dtype=torch.float64).log_softmax(0)[label])
        total += soft_share * temperature**2 * divergence + (1 - soft_share) * hard
    return total


@pytest.mark.parametrize(("soft_share", "temperature"), [(0.7, 2.0), (0.7, 4.0), (1.0, 1.0), (0.0, 2.0)])
def test_the_loss_is_the_formula(soft_share: float, temperature: float) -> None:
    student, teacher = mlp(0).train(), mlp(1)
    task = Distillation(Classification(), teacher, soft_share, temperature)
    found = task.loss(student, BATCH)
    with torch.no_grad():
        answers = student(BATCH["features"]), teacher(BATCH["features"])
    wanted = by_hand(*answers, BATCH["labels"], temperature, soft_share)
    assert found.count == 5
    torch.testing.assert_close(found.sum.double(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_gradients_reach_the_student_alone() -> None:
    student, teacher = mlp(0).train(), mlp(1)
    torch.autograd.backward(Distillation(Classification(), teacher).loss(student, BATCH).sum)
    assert all(weight.grad is not None for weight in student.parameters())
    assert all(weight.grad is None for weight in teacher.parameters())


def test_a_language_model_without_logits_in_its_loss_learns_from_them_too() -> None:
    ids = torch.randint(32, (2, 9))
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
    config = GPTConfig(vocab_size=32, max_length=8, num_layers=1, d_model=16, num_heads=2)
    student, teacher = GPT(config).train(), GPT(config)
    found = Distillation(LanguageModeling(), teacher, 0.7, 2.0).loss(student, batch)
    with torch.no_grad():
        answers = [model(batch["input_ids"]).flatten(0, 1) for model in (student, teacher.eval())]
    wanted = by_hand(answers[0], answers[1], batch["labels"].flatten(), 2.0, 0.7)
    torch.testing.assert_close(found.sum.double(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-4, atol=1e-4)


def test_answers_that_are_no_classes_are_compared_by_squared_error() -> None:
    student, teacher = mlp(0, 1).train(), mlp(1, 1)
    batch = {"features": torch.randn(5, 4), "labels": torch.randn(5)}
    found = Distillation(Regression(), teacher, soft_share=1.0).loss(student, batch)
    with torch.no_grad():
        one, other = student(batch["features"]), teacher(batch["features"])
    wanted = (one - other).square().mean() / other.square().mean() * found.count
    torch.testing.assert_close(found.sum, wanted)


def test_validation_measures_the_task_itself() -> None:
    model, task = mlp(0), Classification()
    assert evaluate(model, [BATCH], Distillation(task, mlp(1))) == evaluate(model, [BATCH], task)
    torch.testing.assert_close(
        Distillation(task, mlp(1)).loss(model.eval(), BATCH).sum, task.loss(model.eval(), BATCH).sum
    )


def test_one_output_is_a_yes_or_no_question() -> None:
    one = softened_divergence(torch.tensor([[1.0]]), torch.tensor([[-2.0]]), 2.0)
    two = softened_divergence(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, -2.0]]), 2.0)
    torch.testing.assert_close(one, two)


def test_wrong_settings_and_answers_are_refused() -> None:
    with pytest.raises(ConfigError, match="soft_share"):
        Distillation(Classification(), mlp(0), soft_share=1.5)
    with pytest.raises(ConfigError, match="temperature"):
        Distillation(Classification(), mlp(0), temperature=0)
    other: nn.Module = mlp(1, labels=4)
    with pytest.raises(ModelError, match="do not answer alike"):
        Distillation(Classification(), other).loss(mlp(0).train(), BATCH)
