"""The loader: a pure function of (seed, epoch, index), resumed exactly, shared among ranks, errors in their turn."""

import itertools
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepseek.data.loader import Loader
from deepseek.errors import ConfigError, DataError


class Numbers:
    """Sample i of epoch e is (e, i). Counts its calls, and fails where it is told to."""

    def __init__(self, count: int, fail_at: int | None = None) -> None:
        self.count = count
        self.fail_at = fail_at
        self.calls = 0

    def __len__(self) -> int:
        return self.count

    def get_batch(self, epoch: int, indices: np.ndarray) -> dict[str, np.ndarray]:
        self.calls += 1
        if self.fail_at in indices:
            raise DataError(f"sample {self.fail_at} is broken")
        return {"index": indices, "epoch": np.full(len(indices), epoch)}


def indices(batches: object) -> list[list[int]]:
    return [batch["index"].tolist() for batch in batches]


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "deepseek-loader"]


def test_an_epoch_has_every_sample_once_in_an_order_of_its_own() -> None:
    loader = Loader(Numbers(20), 5, seed=3)
    epochs = [sum(indices(loader.batch_at(epoch, index) for index in range(len(loader))), []) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(20))
    other = Loader(Numbers(20), 5, seed=4)
    assert indices([other.batch_at(0, 0)]) != [epochs[0][:5]]
    assert loader.batch_at(1, 0)["index"].dtype == torch.int64


def test_without_shuffling_samples_come_in_order() -> None:
    assert indices(Loader(Numbers(10), 3, shuffle=False)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert indices(Loader(Numbers(10), 3, shuffle=False, drop_last=False))[-1] == [9]


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@given(start=st.integers(0, 30))
def test_going_on_from_a_position_gives_what_would_have_come(prefetch: int, start: int) -> None:
    straight = list(itertools.islice(Loader(Numbers(23), 4, seed=1, prefetch=0).iterate(0), start + 6))
    loader = Loader(Numbers(23), 4, seed=1, prefetch=prefetch)
    resumed = loader.iterate(start)
    for wanted, got in zip(straight[start:], resumed, strict=False):
        assert got["index"].tolist() == wanted["index"].tolist()
        assert got["epoch"].tolist() == wanted["epoch"].tolist()
    resumed.close()


def test_the_position_counts_batches_given_out_not_batches_made_ahead() -> None:
    loader = Loader(Numbers(20), 5, prefetch=3)
    batches = loader.iterate()
    for count in range(1, 7):
        next(batches)
        assert loader.position == count
    batches.close()
    rest = loader.iterate()
    assert next(rest)["index"].tolist() == loader.batch_at(1, 2)["index"].tolist()
    rest.close()


def test_iterating_gives_an_epoch_at_a_time() -> None:
    loader = Loader(Numbers(20), 5)
    first, second = indices(loader), indices(loader)
    assert len(first) == len(second) == len(loader) == 4
    assert sorted(sum(first, [])) == sorted(sum(second, [])) and first != second
    assert loader.position == 8
    loader.position = 6
    assert indices(loader) == second[2:]


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.booleans())
def test_ranks_share_the_samples_without_overlap_or_loss(
    count: int, batch_size: int, world_size: int, drop_last: bool, shuffle: bool
) -> None:
    options = {"shuffle": shuffle, "drop_last": drop_last, "world_size": world_size}
    left = count % (batch_size * world_size)
    dropped = left if drop_last or left < world_size else 0
    if count == dropped:
        with pytest.raises(DataError, match="does not fill one batch"):
            Loader(Numbers(count), batch_size, **options)
        return
    loaders = [Loader(Numbers(count), batch_size, rank=rank, **options) for rank in range(world_size)]
    assert len({len(loader) for loader in loaders}) == 1
    parts = [indices(loader.batch_at(1, index) for index in range(len(loader))) for loader in loaders]
    seen = [index for part in parts for batch in part for index in batch]
    assert len(seen) == len(set(seen)) == count - dropped
    assert all(1 <= len(batch) <= batch_size for part in parts for batch in part)
    alone = Loader(Numbers(count), batch_size * world_size, shuffle=shuffle, drop_last=drop_last)
    for index in range(len(loaders[0])):  # a step holds the same samples for any number of ranks
        assert sum((part[index] for part in parts), []) == alone.batch_at(1, index)["index"].tolist()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_comes_in_its_turn_and_names_its_batch(prefetch: int) -> None:
    loader = Loader(Numbers(20, fail_at=11), 5, shuffle=False, prefetch=prefetch)
    batches = loader.iterate(0)
    assert indices([next(batches), next(batches)]) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    with pytest.raises(DataError, match="sample 11 is broken") as caught:
        next(batches)
    assert caught.value.__notes__ == ["while making batch 2 of epoch 0 (position 2, rank 0)"]
    assert loader.position == 2
    assert not loader_threads()


def test_batches_made_ahead_are_bounded_and_their_thread_ends_with_the_iterator() -> None:
    data = Numbers(1000)
    batches = Loader(data, 1, prefetch=3).iterate(0)
    next(batches)
    deadline = time.monotonic() + 0.2
    while time.monotonic() < deadline:
        assert data.calls <= 5  # one taken, three ready, one in hand
        time.sleep(0.01)
    assert len(loader_threads()) == 1
    del batches
    assert not loader_threads()


def test_leaving_a_loop_early_ends_the_thread() -> None:
    for _ in Loader(Numbers(1000), 1):
        break
    assert not loader_threads()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 1, "prefetch": -1}, "prefetch"),
        ({"batch_size": 1, "rank": 1}, "rank"),
        ({"batch_size": 1, "rank": -1, "world_size": 2}, "rank"),
        ({"batch_size": 1, "world_size": 0}, "rank"),
    ],
)
def test_wrong_arguments_are_refused(options: dict, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Loader(Numbers(10), **options)


def test_a_position_or_index_out_of_range_is_refused() -> None:
    loader = Loader(Numbers(10), 5)
    with pytest.raises(ConfigError, match="negative"):
        loader.iterate(-1)
    for epoch, index in ((0, 2), (0, -1), (-1, 0)):
        with pytest.raises(IndexError):
            loader.batch_at(epoch, index)


def test_too_little_data_says_what_would_help() -> None:
    with pytest.raises(DataError, match="3 sequences") as caught:
        Loader(Numbers(3), 2, world_size=2)
    assert "lower batch_size or max_length, or add data" in str(caught.value)
