"""One optimizer step: accumulation, clipping, bad batches and loss scales, held against torch written out by hand."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepseek.errors import DataError, NonFiniteLossError
from deepseek.faults import FaultInjector
from deepseek.models import build
from deepseek.optim.build import build_optimizer
from deepseek.optim.precision import Precision
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.tasks.supervised import Supervised
from deepseek.train.config import TrainConfig
from deepseek.train.step import MAX_BAD_STEPS, TrainStep
from tests.toy_gpt import toy_batches, toy_gpt

CPU = torch.device("cpu")


def make_step(model: nn.Module, **changes: Any) -> TrainStep:
    optimizer = changes.pop("optimizer", None) or build_optimizer(model, TrainConfig(learning_rate=1e-2))
    task = changes.pop("task", LanguageModeling())
    return TrainStep(model, task, optimizer, Precision("fp32", CPU), **changes)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def eight_rows() -> dict[str, Tensor]:
    """Return 8 sequences whose numbers of targets differ widely, one of them without any."""
    batch = toy_batches(1, batch_size=8)[0]
    for row, ignored in enumerate((0, 11, 3, 12, 7, 1, 10, 5)):
        batch["labels"][row, :ignored] = -100
    return batch


def split(batch: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    parts = {name: tensor.split(size) for name, tensor in batch.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_one_by_eight_two_by_four_and_eight_by_one_give_the_same_update(kind: str, max_grad_norm: float | None) -> None:
    results, losses = [], []
    for size in (8, 4, 1):
        # A bias of keys moves no attention; AdamW would blow the rounding in its gradient, which is zero, up to a step.
        model = toy_gpt(bias=kind == "SGD").train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if kind == "SGD" else None
        step = make_step(model, max_grad_norm=max_grad_norm, optimizer=optimizer)
        for _ in range(3):
            update = step(split(eight_rows(), size))
            assert update.items == 8 * 12 - 49 and not update.skipped
        results.append(weights(model))
        losses.append(update.loss)
    assert losses[1:] == [pytest.approx(losses[0], rel=1e-6)] * 2
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("max_grad_norm", [None, 0.1, 1e9])
def test_a_step_is_what_torch_does_by_hand(max_grad_norm: float | None) -> None:
    ours, theirs, batch = toy_gpt().train(), toy_gpt().train(), eight_rows()
    step = make_step(ours, optimizer=torch.optim.SGD(ours.parameters(), lr=0.1), max_grad_norm=max_grad_norm)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for _ in range(3):
        update = step([batch])
        loss = nn.functional.cross_entropy(theirs(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten())
        loss.backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), max_grad_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        assert update.loss == pytest.approx(float(loss.detach()), rel=1e-6)
        assert update.grad_norm == pytest.approx(float(norm), rel=1e-5)
    torch.testing.assert_close(weights(ours), weights(theirs), atol=1e-6, rtol=1e-5)


def test_the_loss_of_a_step_is_the_mean_over_all_its_targets() -> None:
    parts = split(eight_rows(), 2)
    model = toy_gpt().train()
    task = LanguageModeling()
    with torch.no_grad():
        total = sum(float(task.loss(model, part).sum) for part in parts)
    update = make_step(model)(parts)
    assert update.loss == pytest.approx(total / update.items, rel=1e-6)


class Poisoned(LanguageModeling):
    """Makes the loss or the gradients of marked batches not finite."""

    def loss_sum(self, model: nn.Module, batch: Any) -> Tensor:
        loss = super().loss_sum(model, batch)
        poison = batch.get("poison")
        if poison == "loss":
            return loss * math.nan
        if poison == "overflow":
            return loss * math.inf
        if poison == "gradient":  # sqrt has a finite value and an infinite slope at 0
            return loss + (loss - loss).abs().sqrt()
        return loss


@pytest.mark.parametrize("poison", ["loss", "overflow", "gradient"])
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_bad_batch_changes_no_weight_and_ten_in_a_row_end_the_run(
    poison: str, max_grad_norm: float | None, scaled: bool
) -> None:
    model = toy_gpt().train()
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0) if scaled else None
    step = make_step(model, task=Poisoned(), max_grad_norm=max_grad_norm, scaler=scaler)
    good, bad = eight_rows(), {**eight_rows(), "poison": poison}
    assert not step([good]).skipped
    for _ in range(MAX_BAD_STEPS - 1):
        before = weights(model)
        assert step([good, bad]).skipped
        assert torch.equal(weights(model), before)
    assert not step([good]).skipped and not torch.equal(weights(model), before)
    before = weights(model)
    with pytest.raises(NonFiniteLossError, match="in a row"):
        for _ in range(MAX_BAD_STEPS + 10):  # a loss scale is halved until it is below 1 first
            step([bad])
    assert torch.equal(weights(model), before) and bool(weights(model).isfinite().all())
    assert all(p.grad is None for p in model.parameters())


def test_a_run_that_blows_up_keeps_finite_weights() -> None:
    model = toy_gpt().train()
    step = make_step(model, optimizer=torch.optim.SGD(model.parameters(), lr=1e18), max_grad_norm=None)
    with pytest.raises(NonFiniteLossError, match="lower the learning rate"):
        for _ in range(30):
            step([eight_rows()])
    assert bool(weights(model).isfinite().all())


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_a_loss_scale_of_128_gives_the_same_update_as_none(max_grad_norm: float | None) -> None:
    results = []
    for scale in (None, 128.0):
        model = toy_gpt(bias=False).train()  # as above: rounding in a gradient of zero
        scaler = Precision("fp32", CPU).scaler(scale)
        step = make_step(model, max_grad_norm=max_grad_norm, scaler=scaler)
        norms = [step(split(eight_rows(), 4)).grad_norm for _ in range(3)]
        results.append((weights(model), norms))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-6, rtol=0)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-5)


def test_overflows_halve_the_scale_until_a_step_fits() -> None:
    model = toy_gpt().train()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    step = make_step(model, scaler=scaler, task=Steep())
    before = weights(model)
    updates = [step([eight_rows()]) for _ in range(30)]
    skipped = sum(update.skipped for update in updates)
    assert 0 < skipped < 25 and [update.skipped for update in updates] == [True] * skipped + [False] * (30 - skipped)
    assert all(math.isfinite(update.loss) for update in updates)
    assert scaler.get_scale() == 2.0 ** (127 - skipped) and not torch.equal(weights(model), before)


class Steep(LanguageModeling):
    def loss_sum(self, model: nn.Module, batch: Any) -> Tensor:
        return super().loss_sum(model, batch) * 1e4


def test_a_disabled_scaler_is_none() -> None:
    model = toy_gpt().train()
    assert make_step(model, scaler=torch.amp.GradScaler("cpu", enabled=False)).scaler is None


def test_a_step_without_targets_is_skipped_and_ten_in_a_row_are_an_error() -> None:
    model = toy_gpt().train()
    step, nothing = make_step(model), eight_rows()
    nothing["labels"][:] = -100
    before = weights(model)
    for _ in range(2):
        for _ in range(MAX_BAD_STEPS - 1):
            update = step([nothing])
            assert update.skipped and update.items == 0 and math.isnan(update.loss)
        assert torch.equal(weights(model), before)
        assert not step([eight_rows(), nothing]).skipped
        before = weights(model)
    with pytest.raises(DataError, match="no target to learn from"):
        for _ in range(MAX_BAD_STEPS):
            step([nothing])


def test_supervised_batches_accumulate_to_one_large_batch() -> None:
    inputs, targets, results = torch.randn(12, 5), torch.randint(3, (12,)), []
    for sizes in ([12], [7, 5], [1, 4, 7]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
        step = make_step(model, task=Supervised(nn.CrossEntropyLoss()))
        step(list(zip(inputs.split(sizes), targets.split(sizes), strict=True)))
        results.append(weights(model))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=1e-6, rtol=0)


def test_a_step_moves_the_bias_of_a_mixture_of_experts_and_a_bad_one_does_not() -> None:
    model = build(Path(__file__).parent.parent / "toys" / "deepseek_moe.yaml").train()
    step, ids = make_step(model), torch.randint(96, (2, 13))
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
    biases = [value for name, value in model.named_buffers() if name.endswith("correction_bias")]
    step([batch, batch])
    moved = torch.stack(biases).clone()
    assert bool(moved.any())
    torch.testing.assert_close(moved, 1e-3 * moved.sign())
    step.loss_sum = lambda model, batch: LanguageModeling().loss_sum(model, batch) * math.nan
    assert step([batch]).skipped
    torch.testing.assert_close(torch.stack(biases), moved)


def test_a_bad_batch_leaves_no_trace_in_the_running_means_of_a_batch_norm() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).train()
    step = make_step(model, task=Supervised(nn.MSELoss()), optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    good = (torch.randn(8, 3), torch.randn(8, 1))
    step([good])
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert step([(torch.full((8, 3), math.nan), good[1])]).skipped
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert not step([good]).skipped and int(model.get_buffer("1.num_batches_tracked")) == 2


def test_memory_that_runs_out_costs_a_retry_in_halves_and_no_change_of_the_update() -> None:
    results = []
    for nth in (None, 1):
        model = toy_gpt(bias=False).train()
        step = make_step(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        fault = FaultInjector("step.forward", nth, "out_of_memory") if nth else contextlib.nullcontext()
        with fault:
            step([eight_rows()])
        results.append(weights(model))
        assert step.splitter.parts == (2 if nth else 1)
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=0)
