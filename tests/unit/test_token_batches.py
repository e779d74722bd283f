"""Steps of a number of tokens: which micro-batches they take, from any position, and how many steps there will be."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.errors import ConfigError, DataError
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.train.batches import ListBatches, as_stream
from deepseek.train.prefetch import prefetch
from deepseek.train.token_batches import TokenAccumulation
from tests.toy_gpt import toy_batches


class CountsItself:
    """A task whose batches are their own number of items."""

    def count(self, batch: int) -> int:
        return batch


def accumulation(counts: list[int], tokens: int) -> TokenAccumulation:
    return TokenAccumulation(ListBatches(counts), CountsItself(), tokens)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any), st.integers(1, 200), st.integers(0, 30))
def test_a_step_takes_as_few_micro_batches_as_fill_it_and_each_is_taken_once(
    counts: list[int], tokens: int, start: int
) -> None:
    position = start
    for step in islice(accumulation(counts, tokens).iterate(start), 6):
        expected = [counts[place % len(counts)] for place in range(position, step.position)]
        assert step.batches == expected and step.items == sum(expected)
        assert step.items >= tokens > step.items - expected[-1]
        position = step.position


def test_from_the_position_after_any_step_the_same_steps_follow() -> None:
    steps = accumulation([3, 1, 4, 1, 5, 9, 2, 6], 10)
    whole = list(islice(steps.iterate(), 12))
    for done in range(1, 12):
        assert list(islice(steps.iterate(whole[done - 1].position), 12 - done)) == whole[done:]


def test_real_batches_are_counted_by_the_task_and_ahead_of_time_too() -> None:
    batches = toy_batches(6)
    for number, batch in enumerate(batches):
        batch["labels"][:, : 2 * number] = -100  # 48, 40, 32, 24, 16, 8 targets
    source = TokenAccumulation(as_stream(batches), LanguageModeling(), 64)
    for made in (source.iterate(), prefetch(source)):
        steps = list(islice(made, 3))
        assert [(len(step.batches), step.items, step.position) for step in steps] == [
            (2, 88, 2),
            (3, 72, 5),
            (3, 96, 8),
        ]
        assert torch.equal(steps[1].batches[0]["labels"], batches[2]["labels"])


def test_the_stream_is_closed_and_a_finite_one_ends() -> None:
    closed = []

    class Finite:
        def __len__(self) -> int:
            return 5

        def iterate(self, start: int | None = None) -> Iterator[Any]:
            try:
                yield from range(start or 0, 5)
            finally:
                closed.append(True)

    steps = TokenAccumulation(Finite(), CountsItself(), 3)  # type: ignore[arg-type]
    assert [step.batches for step in steps.iterate()] == [[0, 1, 2], [3], [4]]
    steps.iterate().close()
    one = steps.iterate()
    next(one)
    one.close()
    assert len(closed) == 2


def test_data_without_a_target_is_an_error_not_an_endless_search() -> None:
    with pytest.raises(DataError, match="1000 micro-batches in a row"):
        next(accumulation([0, 0], 1).iterate())
    with pytest.raises(DataError, match="first 2 micro-batches"):
        accumulation([0, 0], 1).steps_in(10)
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(ConfigError, match="tokens_per_step"):
            accumulation([1], wrong)  # type: ignore[arg-type]


def test_the_number_of_steps_is_known_beforehand_nearly_where_lengths_differ() -> None:
    assert accumulation([48], 100).steps_in(300) == 100
    assert accumulation([48], 48).steps_in(7) == 7
    assert accumulation([48], 1000).steps_in(5) == 1
    chance = random.Random(1)
    for low, high, tokens in ((1, 60, 100), (1, 60, 1000), (30, 40, 64), (1, 2, 50)):
        counts = [chance.randint(low, high) for _ in range(2000)]
        steps = accumulation(counts, tokens)
        real = sum(1 for step in islice(steps.iterate(), 2000) if step.position <= 2000)
        assert steps.steps_in(2000, probe=2000) == real
        assert steps.steps_in(2000, probe=200) == pytest.approx(real, rel=0.05)
        assert steps.steps_in(400_000, probe=2000) == pytest.approx(200 * real, rel=0.01)
