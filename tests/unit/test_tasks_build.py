"""A task from a recipe's values, and what every task of the table can do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError, DataError
from deepseek.nn.detection_loss import Gains
from deepseek.registry import TASKS
from deepseek.tasks.build import build_task, task_settings
from deepseek.tasks.detection import Detection
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.tasks.supervised import Supervised
from deepseek.tasks.task import MeanLoss, evaluate, evaluator_of, mean_loss
from tests.toy_gpt import toy_batches, toy_gpt


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_of_the_table_is_made_by_its_name(name: str) -> None:
    task = build_task(name)
    assert task.name == name
    for member in ("count", "loss", "loss_sum", "metrics", "predict"):
        assert callable(getattr(task, member))
    assert task.metrics(0.5)["loss"] == 0.5
    with pytest.raises(DataError):
        evaluator_of(task).result()


def test_settings_reach_the_task() -> None:
    assert build_task({"name": "classification", "label_smoothing": 0.1}).label_smoothing == 0.1  # type: ignore[attr-defined]
    task = build_task({"name": "detection", "gains": {"box": 0.1}, "min_score": 0})
    assert isinstance(task, Detection) and task.gains == Gains(box=0.1) and task.min_score == 0
    assert set(task_settings("energies_forces")) == {"energy_weight", "force_weight", "per_atom"}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"name": "image_clasification"}, "did you mean 'image_classification'"),
        ({"name": "classification", "label_smothing": 0.1}, "did you mean 'label_smoothing'"),
        ({"name": "classification", "label_smoothing": "much"}, "label_smoothing of the task classification"),
        ({"name": "classification", "label_smoothing": 1.0}, "a share"),
        ({"name": "detection", "gains": {"boxx": 0.1}}, "gains.boxx of the task detection"),
        ({"name": "contrastive", "margin": 1}, "this task has no settings"),
        ({"name": "regression", "loss": "l3"}, "'mse', 'l1' or 'huber'"),
        ({"name": "diffusion", "steps": 10}, "sample_steps is too large"),
        ({"name": "energies_forces", "energy_weight": 0, "force_weight": 0}, "nothing to learn"),
        ({"label_smoothing": 0.1}, "a task needs a name"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build_task(values)


def test_a_task_without_an_evaluator_is_measured_by_its_loss() -> None:
    model, batches, task = toy_gpt(), toy_batches(3), LanguageModeling()
    found = evaluate(model, batches, task)
    assert found["loss"] == pytest.approx(mean_loss(model, batches, task), rel=1e-12)
    assert found == MeanLossOf(task, model, batches) and set(found) == {"loss", "perplexity"}
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate(model, [], task)


def MeanLossOf(task: LanguageModeling, model: nn.Module, batches: list[dict[str, Tensor]]) -> dict[str, float]:
    evaluator = MeanLoss(task)
    for batch in batches:
        evaluator.update(model, batch)
    return evaluator.result()


def test_evaluation_sets_modes_and_restores_each_parts_own() -> None:
    seen: list[tuple[bool, bool, bool]] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.frozen = nn.Linear(2, 1), nn.BatchNorm1d(1).eval()

        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
            return self.frozen(self.inner(x))

    model = Watched().train()
    model.frozen.eval()
    batches = [(torch.randn(3, 2), torch.randn(3, 1))]
    evaluate(model, batches, Supervised(nn.MSELoss()), autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    assert seen == [(False, False, True)]
    assert model.training and model.inner.training and not model.frozen.training
