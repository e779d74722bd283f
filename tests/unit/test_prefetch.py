"""Batches made ahead by a thread: order, positions, errors, the thread's end, and when it is worth it."""

from __future__ import annotations

import gc
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from deepseek.data import Loader
from deepseek.errors import ConfigError, DataError
from deepseek.train.batches import as_stream
from deepseek.train.prefetch import decide, map_tensors, prefetch
from tests.toy_gpt import toy_batches
from tests.toy_training import Samples, trainer, weights


class Numbers:
    """The numbers from `start` on, up to `stop`; counts what was made, and can fail at one of them."""

    def __init__(self, stop: int = 10**9, fail_at: int = -1, seconds: float = 0.0) -> None:
        self.stop, self.fail_at, self.seconds = stop, fail_at, seconds
        self.made = 0
        self.closed = 0

    def __len__(self) -> int:
        return 7

    def iterate(self, start: int | None = None) -> Iterator[Any]:
        try:
            for number in range(start or 0, self.stop):
                if number == self.fail_at:
                    raise DataError("a bad sample")
                self.made += 1
                time.sleep(self.seconds)
                yield number
        finally:
            self.closed += 1


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "deepseek-loader"]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_order_and_positions_are_those_of_the_stream_and_no_more_is_made_than_asked(depth: int) -> None:
    numbers = Numbers()
    iterator = prefetch(numbers, 3, depth)
    assert list(islice(iterator, 20)) == list(range(3, 23))
    assert numbers.made <= 20 + depth + 1
    iterator.close()
    assert threads() == [] and numbers.closed == 1
    assert next(prefetch(numbers, 23, depth)) == 23


def test_an_error_comes_in_its_turn_with_its_place() -> None:
    numbers = Numbers(fail_at=3)
    iterator = prefetch(numbers, 1, depth=4)
    assert [next(iterator), next(iterator)] == [1, 2]
    with pytest.raises(DataError, match="a bad sample") as caught:
        next(iterator)
    assert (
        caught.value.__notes__ == ["while preparing a batch ahead of its turn"]
        and threads() == []
        and numbers.closed == 1
    )


def test_a_finite_stream_ends_and_an_iterator_thrown_away_ends_its_thread() -> None:
    assert list(prefetch(Numbers(stop=6), 2, depth=3)) == [2, 3, 4, 5]
    iterator = prefetch(Numbers(), 0)
    next(iterator)
    assert len(threads()) == 1
    del iterator
    gc.collect()
    assert threads() == []


def test_a_run_takes_the_same_steps_with_it_and_leaves_no_thread() -> None:
    found = []
    for wish in (False, True):
        run = trainer(train_dataset=Loader(Samples(), 4, seed=3, prefetch=0), prefetch=wish)
        run.train(epochs=2)
        found.append(weights(run.model))
    assert torch.equal(*found) and threads() == []


def test_batches_made_with_global_random_numbers_are_refused_and_found_out() -> None:
    class Draws(Numbers):
        def iterate(self, start: int | None = None) -> Iterator[Any]:
            for _ in super().iterate(start):
                yield np.random.rand()

    with pytest.raises(ConfigError, match="can't be made ahead"):
        trainer(train_dataset=DataLoader(toy_batches(3), batch_size=None), prefetch=True).train(max_steps=1)
    np.random.seed(5)
    before = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    decision = decide(Draws(), 1e-9)
    assert not decision.prefetch and "global random numbers" in decision.reason
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index, union-attr]


def test_it_is_worth_it_where_preparing_takes_a_share_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepseek.train.prefetch.physical_cores", lambda: torch.get_num_threads() + 1)
    slow = Numbers(seconds=0.004)
    assert decide(slow, 0.02).prefetch and decide(slow, 0.02).seconds >= 0.004
    assert not decide(slow, 100.0).prefetch and "0.0%" in decide(slow, 100.0).reason
    slow.made = 0
    decide(slow, 0.02, limit=0.01)
    assert slow.made <= 4 and slow.closed == 5
    for stream, reason in (
        (as_stream(toy_batches(2)), "in memory"),
        (Loader(Samples(), 4), "ahead already"),
        (as_stream(DataLoader(toy_batches(3), batch_size=None)), "global random numbers"),
    ):
        decision = decide(stream, 1e-9)
        assert not decision.prefetch and reason in decision.reason and decision.seconds == 0
    assert decide(Loader(Samples(), 4, prefetch=0), 1e-9).prefetch


def test_where_no_core_is_free_only_waiting_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Works(Numbers):
        def iterate(self, start: int | None = None) -> Iterator[Any]:
            for number in super().iterate(start):
                began = time.thread_time()
                while time.thread_time() - began < 0.004:
                    pass
                yield number

    monkeypatch.setattr("deepseek.train.prefetch.physical_cores", torch.get_num_threads)
    monkeypatch.setattr(time, "perf_counter", time.thread_time)  # a machine on which nobody else takes time away
    busy = decide(Works(), 0.02)
    assert not busy.prefetch and busy.seconds >= 0.004 and "no core is free" in busy.reason
    monkeypatch.undo()
    assert decide(Numbers(seconds=0.004), 0.02).prefetch


def test_tensors_are_found_in_everything_a_batch_is_made_of() -> None:
    Pair = namedtuple("Pair", "first second")
    one = torch.ones(2)
    batch = {"a": [one, (one, "text")], "b": Pair(one, 3), "c": None}
    doubled = map_tensors(batch, lambda tensor: tensor * 2)
    assert doubled["a"][0].tolist() == [2, 2] and doubled["a"][1][1] == "text" and doubled["c"] is None
    assert isinstance(doubled["b"], Pair) and doubled["b"].first.tolist() == [2, 2] and doubled["b"].second == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="copies to a GPU need one")
def test_batches_arrive_on_the_gpu_whole() -> None:
    batches = [{"x": torch.full((1 << 20,), float(n))} for n in range(5)]
    ahead = prefetch(as_stream(batches), device=torch.device("cuda"))
    for number, batch in enumerate(islice(ahead, 20)):
        assert batch["x"].is_cuda and batch["x"].sum().item() == (1 << 20) * (number % 5)
