"""When memory runs out: what counts as that, how batches are cut, and that the update is that of the whole batch."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deepseek.errors import TrainingError
from deepseek.faults import FaultInjector
from deepseek.models.gpt import GPT
from deepseek.optim.precision import Precision
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.train.memory.recovery import MicroBatchSplitter, is_out_of_memory, rows_of, split_batch
from deepseek.train.step import TrainStep
from tests.toy_gpt import toy_batches, toy_config
from tests.toy_training import weights


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


def test_what_says_that_memory_ran_out() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(OSError("out of memory"))


@given(st.integers(2, 9), st.integers(2, 12))
def test_the_parts_make_up_the_batch(rows: int, parts: int) -> None:
    batch: Any = {"x": torch.arange(rows * 2).view(rows, 2), "pair": Pair(torch.arange(rows), torch.ones(rows, 1, 2))}
    batch |= {"scale": torch.tensor(3.0), "names": [str(row) for row in range(rows)], "flag": True}
    cut = split_batch(batch, parts)
    sizes = [rows_of(part) for part in cut]
    assert len(cut) == min(parts, rows) and sum(sizes) == rows and max(sizes) - min(sizes) <= 1
    assert torch.equal(torch.cat([part["x"] for part in cut]), batch["x"])
    assert torch.equal(torch.cat([part["pair"].second for part in cut]), batch["pair"].second)
    assert sum((part["names"] for part in cut), []) == batch["names"]
    assert all(part["flag"] is True and part["scale"] is batch["scale"] for part in cut)
    assert cut[0]["x"].data_ptr() == batch["x"].data_ptr()  # a view, not a copy


def test_lists_and_tuples_of_tensors_are_cut() -> None:
    first, second = split_batch((torch.zeros(3, 2), [torch.ones(3)]))
    assert first[0].shape == (1, 2) and second[0].shape == (2, 2) and second[1][0].shape == (2,)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": torch.zeros(1, 4)}, "one sample"),
        ({"x": torch.zeros(4), "y": torch.zeros(3)}, "can't be split"),
        ({"x": 3}, "can't be split"),
    ],
)
def test_what_cannot_be_cut_is_an_error(batch: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        split_batch(batch)


def step_of(dropout: float = 0.0) -> TrainStep:
    torch.manual_seed(2)
    model = GPT(toy_config(dropout=dropout)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return TrainStep(model, LanguageModeling(), optimizer, Precision("fp32", torch.device("cpu")))


def test_a_step_that_ran_out_of_memory_does_the_same_update(caplog: pytest.LogCaptureFixture) -> None:
    batches = toy_batches(2, batch_size=4)
    batches[0]["labels"][0, :6] = -100  # the parts have different numbers of targets
    plain, hit = step_of(), step_of()
    wanted = plain(batches)
    with caplog.at_level(logging.WARNING), FaultInjector("step.backward", nth=2, kind="out_of_memory"):
        found = hit(batches)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-6) and found.items == wanted.items
    assert found.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-5)
    torch.testing.assert_close(weights(hit.model), weights(plain.model), rtol=1e-5, atol=1e-7)
    assert caplog.text.count("memory ran out") == 1 and "cut into 2 parts" in caplog.text
    assert hit.splitter.parts == 2 and hit.state_dict()["splitter"] == {"parts": 2}
    twin = step_of()
    twin.load_state_dict(hit.state_dict())
    assert twin.splitter.parts == 2


def test_it_halves_until_it_fits_and_says_so_at_single_rows() -> None:
    step = step_of()
    batches = toy_batches(1, batch_size=4)
    calls = 0
    limit = 1
    plain = step.loss_sum

    def tight(model: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if len(batch["labels"]) > limit:
            raise MemoryError
        return plain(model, batch)

    step.loss_sum = tight
    step(batches)
    assert step.splitter.parts == 4 and calls == 1 + 1 + 4
    limit = 0
    with pytest.raises(TrainingError, match="one sample") as caught:
        step(batches)
    assert isinstance(caught.value.__cause__, MemoryError)


def test_other_errors_pass_through_and_gradients_of_a_failed_try_are_gone() -> None:
    step = step_of()
    with pytest.raises(RuntimeError, match="unrelated"):
        step.loss_sum = lambda model, batch: (_ for _ in ()).throw(RuntimeError("unrelated"))
        step(toy_batches(1))
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    assert MicroBatchSplitter().recover(MemoryError(), [torch.zeros(4)], model)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_batch_norm_is_told_to_see_fewer_samples(caplog: pytest.LogCaptureFixture) -> None:
    splitter = MicroBatchSplitter()
    with caplog.at_level(logging.WARNING):
        splitter.recover(MemoryError(), [torch.zeros(4, 3)], nn.BatchNorm1d(3))
    assert "batch norms see fewer samples" in caplog.text
