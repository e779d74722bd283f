"""The plan for a memory budget: the cheapest settings that fit, by a search over all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from deepseek.errors import ConfigError, MemoryEstimateError
from deepseek.models.gpt import GPT
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.tasks.supervised import Supervised
from deepseek.train.config import TrainConfig
from deepseek.train.memory import plan as memory_plan
from deepseek.train.memory.plan import MemoryPlan, plan_memory
from tests.toy_gpt import toy_batches, toy_config

CPU = torch.device("cpu")
SHAPE = toy_config(vocab_size=6000, max_length=64, num_layers=2, d_model=32)


def plan(budget: int, **options: Any) -> MemoryPlan:
    config = TrainConfig(memory_budget=f"{budget}B", async_checkpoints=False, precision="fp32")
    return plan_memory(lambda: GPT(SHAPE), LanguageModeling(), toy_batches(1, 8, 64)[0], config, CPU, **options)


def all_trials() -> list[memory_plan.MemoryTrial]:
    config = TrainConfig(async_checkpoints=False, precision="fp32")
    batch, task, model = toy_batches(1, 8, 64)[0], LanguageModeling(), GPT(SHAPE)
    reckon = memory_plan._Reckoner(model, task, batch, config, memory_plan.Precision("fp32", CPU))
    return [reckon(trial) for trial in memory_plan._candidates(model, task, batch, config, False)]


def test_the_cheapest_that_fits_is_chosen() -> None:
    trials = all_trials()
    peaks = sorted({trial.peak for trial in trials})
    for budget in (peaks[0], peaks[len(peaks) // 3], peaks[len(peaks) // 2], peaks[-1]):
        fits = [trial for trial in trials if trial.peak <= budget]
        found = plan(budget)
        assert found.chosen.peak <= budget == found.budget
        assert found.chosen.cost == pytest.approx(min(trial.cost for trial in fits))
        assert found.chosen in found.tried


def test_nothing_changes_where_there_is_room_and_the_plan_is_readable() -> None:
    found = plan(1 << 30)
    assert (found.chosen.recompute, found.chosen.parts, found.chosen.loss_chunk_bytes) == ("none", 1, None)
    assert "<- chosen" in found.table() and "memory plan: " in found.table() and "1.0 GiB" in found.table()


def test_the_settings_and_the_task_follow_the_plan() -> None:
    trials = all_trials()
    found = plan(min(trial.peak for trial in trials))
    config = TrainConfig(batch_size=8)
    assert found.settings(config).recompute == found.chosen.recompute != "none"
    task = LanguageModeling()
    changed: Any = found.task(task)
    assert changed.max_logits_bytes == found.chosen.loss_chunk_bytes and task.max_logits_bytes == 256 << 20
    assert "too large" in found.table()


def test_what_can_not_fit_names_the_nearest_that_does() -> None:
    smallest = min(trial.peak for trial in all_trials())
    with pytest.raises(MemoryEstimateError, match="can't be made to fit") as caught:
        plan(smallest - 10_000)
    assert "set memory_budget to" in str(caught.value) and "optimizer_bits: 8" in str(caught.value)
    assert plan(smallest - 10_000, allow_8bit=True).chosen.optimizer_bits == 8


def test_batch_norm_keeps_its_micro_batch_as_long_as_it_can() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()) for _ in range(4)))
    batch = torch.zeros(4096, 64), torch.zeros(4096, 64)
    config = TrainConfig(memory_budget="22MiB", async_checkpoints=False, precision="fp32")
    found = plan_memory(lambda: model, Supervised(nn.MSELoss()), batch, config, CPU)
    assert found.chosen.parts > 1
    costs = [trial.cost for trial in found.tried]
    assert costs == sorted(costs) and all(trial.parts == 1 for trial in found.tried[:1])


def test_a_wrong_budget_is_refused_first() -> None:
    with pytest.raises(ConfigError, match="not a memory budget"):
        plan_memory(lambda: GPT(SHAPE), LanguageModeling(), {}, TrainConfig(memory_budget="lots"), CPU)
