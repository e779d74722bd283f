"""Orders and steps: shards partition an epoch for any number of ranks, and uneven ends are what they are said to be."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.data.loaders.orders import EpochOrders, by_block, by_length, shuffled
from deepseek.data.loaders.ranks import default_rank
from deepseek.data.loaders.steps import Steps
from deepseek.errors import ConfigError, DataError

counts, batch_sizes, worlds = st.integers(1, 80), st.integers(1, 6), st.integers(1, 9)


def all_steps(count: int, batch_size: int, world_size: int, **options: object) -> list[list[list[int]]]:
    """Return the places of each rank's batches, or nothing where an epoch has none."""
    try:
        ranks = [Steps(count, batch_size, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    except DataError:
        return []
    assert len({len(steps) for steps in ranks}) == 1
    return [[steps.places(index).tolist() for index in range(len(steps))] for steps in ranks]


def flat(ranks: list[list[list[int]]]) -> Counter[int]:
    return Counter(place for batches in ranks for batch in batches for place in batch)


@given(counts, batch_sizes, worlds)
def test_short_gives_each_sample_once_to_one_rank(count: int, batch_size: int, world_size: int) -> None:
    ranks = all_steps(count, batch_size, world_size)
    if count < world_size:
        assert not ranks
        return
    assert flat(ranks) == Counter(range(count))
    for together in zip(*ranks, strict=True):
        sizes = [len(batch) for batch in together]
        assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1 and max(sizes) <= batch_size + 1


@given(counts, batch_sizes, worlds)
def test_pad_repeats_few_samples_and_gives_all_ranks_as_many(count: int, batch_size: int, world_size: int) -> None:
    ranks = all_steps(count, batch_size, world_size, uneven="pad")
    seen = flat(ranks)
    assert set(seen) == set(range(count))
    assert 0 <= sum(seen.values()) - count < world_size
    assert all(len({len(batch) for batch in together}) == 1 for together in zip(*ranks, strict=True))


@given(counts, batch_sizes, worlds)
def test_drop_leaves_few_samples_out_and_gives_all_ranks_as_many(count: int, batch_size: int, world_size: int) -> None:
    ranks = all_steps(count, batch_size, world_size, uneven="drop")
    seen = flat(ranks)
    assert all(times == 1 for times in seen.values())
    assert sum(seen.values()) == count // world_size * world_size
    assert all(len({len(batch) for batch in together}) == 1 for together in zip(*ranks, strict=True))


@given(counts, batch_sizes, worlds, st.sampled_from(["short", "pad", "drop"]))
def test_drop_last_gives_full_batches_alone(count: int, batch_size: int, world_size: int, uneven: str) -> None:
    ranks = all_steps(count, batch_size, world_size, drop_last=True, uneven=uneven)
    assert {len(batch) for batches in ranks for batch in batches} <= {batch_size}
    assert flat(ranks) == Counter(range(count // (batch_size * world_size) * batch_size * world_size))


@given(counts, batch_sizes, st.integers(1, 4))
def test_a_step_holds_the_same_samples_for_any_number_of_ranks(count: int, share: int, world_size: int) -> None:
    shared = all_steps(count, share, world_size)
    alone = all_steps(count, share * world_size, 1)
    left = count % (share * world_size)
    if shared and not 0 < left < world_size:  # few left over join the step before
        assert [sorted(sum(parts, [])) for parts in zip(*shared, strict=True)] == alone[0]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=200), st.integers(1, 8), st.integers(1, 5))
def test_orders_by_length_hold_every_sample_once(sizes: list[int], step: int, pool: int) -> None:
    order = by_length(shuffled(len(sizes), 1, 2), np.array(sizes), step, pool, 1, 2)
    assert sorted(order.tolist()) == list(range(len(sizes)))


def test_batches_of_like_length_are_padded_less() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.lognormal(4, 0.8, 5000).astype(np.int64) + 1

    def padded(order: np.ndarray) -> float:
        batches = sizes[order][: len(order) // 32 * 32].reshape(-1, 32)
        return float(1 - batches.sum() / (batches.max(axis=1) * 32).sum())

    plain = shuffled(len(sizes), 0, 0)
    bucketed = by_length(plain, sizes, 32, 50, 0, 0)
    assert padded(plain) > 0.7 and padded(bucketed) < 0.15  # measured: 0.75 and 0.11
    other = by_length(shuffled(len(sizes), 0, 1), sizes, 32, 50, 0, 1)
    assert not np.array_equal(bucketed, other)
    steps = sizes[bucketed][: 32 * 156].reshape(-1, 32).mean(axis=1)
    assert abs(np.corrcoef(steps[1:], steps[:-1])[0, 1]) < 0.3  # long and short batches are mixed


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 5), st.integers(0, 3))
def test_orders_by_block_stay_within_their_window(lengths: list[int], window: int, epoch: int) -> None:
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    order = by_block(starts, window, 7, epoch)
    assert sorted(order.tolist()) == list(range(int(starts[-1])))
    blocks = np.searchsorted(starts, order, side="right") - 1
    for block in range(len(lengths)):
        where = np.flatnonzero(blocks == block)
        assert len(set(blocks[where[0] : where[-1] + 1].tolist())) <= window


def test_two_epochs_are_kept() -> None:
    made: list[int] = []

    def make(epoch: int) -> np.ndarray:
        made.append(epoch)
        return np.arange(epoch)

    orders = EpochOrders(make)
    for epoch in (0, 1, 0, 1, 2, 1, 0):
        orders(epoch)
    assert made == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"rank": 2, "world_size": 2}, "rank"),
        ({"rank": -1}, "rank"),
        ({"uneven": "even"}, "uneven"),
    ],
)
def test_wrong_arguments_are_refused(options: dict, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Steps(10, **{"batch_size": 2, **options})


def test_the_rank_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_rank(None, None) == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert default_rank(None, None) == (3, 4)
    assert default_rank(0, 2) == (0, 2)
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ConfigError, match="RANK"):
        default_rank(None, None)
    with pytest.raises(ConfigError, match="go together"):
        default_rank(1, None)
