"""DistributedDataset: the same batches with and without workers, exact resume, policies, and a training run."""

import itertools
import random
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deepseek.data.loaders import DistributedDataset
from deepseek.data.loaders.distributed_dataset import pinned
from deepseek.data.loaders.shared_memory import dumps
from deepseek.data.pipeline import Domain, Pipeline, SampleStage
from deepseek.errors import ConfigError, DataError
from deepseek.tasks.image_classification import ImageClassification
from tests.toy_training import trainer

Pair = namedtuple("Pair", "x y")


class Numbers:
    """A Reader: sample i is i, of length i % 7."""

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        self.count = count
        self.broken = broken

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> dict[str, Any]:
        if index in self.broken:
            raise DataError(f"numbers-{index}.txt is broken")
        return {"number": index, "input_features": torch.full((index % 7 + 1, 2), float(index)), "path": "numbers"}

    def sizes(self) -> np.ndarray:
        return np.arange(self.count) % 7


class Rows:
    """A plain map-style data set of pairs."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((3,), index, dtype=torch.bfloat16), index


class Noise(SampleStage):
    takes = gives = Domain.FEATURES

    def apply(self, sample: dict, rng: np.random.Generator) -> dict:
        features = sample["input_features"]
        return {**sample, "input_features": features + float(rng.standard_normal())}


def numbers(batches: Any) -> list[list[int]]:
    return [batch["number"].tolist() for batch in batches]


@pytest.mark.parametrize("length_buckets", [0, 3])
def test_workers_change_nothing(length_buckets: int) -> None:
    def batches(workers: int) -> list[dict]:
        data = DistributedDataset(Numbers(50), 4, workers, Pipeline([Noise()]), length_buckets=length_buckets)
        with data:
            return list(itertools.islice(data.iterate(9), 12))

    alone, together = batches(0), batches(3)
    for one, other in zip(alone, together, strict=True):
        assert set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


@settings(max_examples=25)
@given(st.integers(0, 40), st.integers(0, 3), st.sampled_from([0, 2]), st.booleans())
def test_going_on_from_a_position_gives_what_would_have_come(
    start: int, rank: int, length_buckets: int, shuffle: bool
) -> None:
    def make() -> DistributedDataset:
        options = {"rank": rank, "world_size": 4, "length_buckets": length_buckets, "shuffle": shuffle, "seed": 5}
        return DistributedDataset(Numbers(61), 3, 0, **options)

    straight = make()
    wanted = numbers(itertools.islice(straight.iterate(0), start + 5))[start:]
    resumed = make()
    resumed.load_state_dict({**straight.state_dict(), "position": start})
    assert numbers(itertools.islice(resumed.iterate(), 5)) == wanted
    assert resumed.position == start + 5


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_at_a_time_and_its_position(workers: int) -> None:
    data = DistributedDataset(Numbers(30), 8, workers)
    first, second = numbers(data), numbers(data)
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(30)) and first != second
    assert data.position == 8 and len(data) == 4
    data.position = 6
    assert numbers(data) == second[2:]
    assert data.batch_at(1, 0)["number"].tolist() == second[0] == data.indices_at(1, 0).tolist()


def test_ranks_share_an_epoch() -> None:
    parts = [numbers(DistributedDataset(Numbers(50), 4, 0, rank=rank, world_size=3)) for rank in range(3)]
    assert sorted(sum(sum(parts, []), [])) == list(range(50))


def test_a_state_of_other_data_is_refused() -> None:
    data = DistributedDataset(Numbers(48), 8, 0)
    state = data.state_dict()
    DistributedDataset(Numbers(48), 4, 0, rank=1, world_size=2).load_state_dict(state)
    for other in (DistributedDataset(Numbers(47), 8, 0), DistributedDataset(Numbers(48), 8, 0, seed=1)):
        with pytest.raises(ConfigError, match="another run"):
            other.load_state_dict(state)
    with pytest.raises(ConfigError, match="no state"):
        data.load_state_dict({"position": 3})
    with pytest.raises(ConfigError, match="negative"):
        data.iterate(-1)


@pytest.mark.parametrize("workers", [0, 2])
def test_any_data_set_and_any_batch(workers: int) -> None:
    values, indices = next(iter(DistributedDataset(Rows(), 4, workers, shuffle=False)))
    assert values.dtype == torch.bfloat16 and values[:, 0].tolist() == indices.tolist() == [0, 1, 2, 3]

    def odd(samples: list[Any]) -> Any:
        empty = torch.zeros(0, 3), np.zeros((0, 2))
        return {"pair": Pair(np.arange(6.0).reshape(2, 3).T, "text"), "empty": empty, "zero": torch.tensor(7 + 1j)}

    batch = next(iter(DistributedDataset(Rows(), 4, workers, odd)))
    assert isinstance(batch["pair"], Pair) and batch["pair"].x.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert batch["empty"][0].shape == (0, 3) and batch["empty"][1].shape == (0, 2) and batch["zero"] == 7 + 1j
    batch["pair"].x[0] = 5.0  # a batch belongs to its receiver


def test_tensors_are_not_in_the_pickle() -> None:
    body, buffers = dumps({"a": torch.zeros(100_000), "b": np.zeros(50_000), "c": torch.zeros(4, dtype=torch.bool)})
    assert len(body) < 1000 and [buffer.nbytes for buffer in buffers] == [400_000, 400_000, 4]


def test_batches_that_are_held_keep_their_values() -> None:
    data = DistributedDataset(Numbers(2000), 50, 2, shuffle=False)
    held = list(data)
    for at, batch in enumerate(held):
        assert batch["number"].tolist() == list(range(50 * at, 50 * at + 50))
        assert torch.equal(batch["input_features"][:, 0, 0], batch["number"].float())


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_in_its_turn_and_says_where(workers: int) -> None:
    data = DistributedDataset(Numbers(20, broken=(11,)), 5, workers, shuffle=False)
    batches = data.iterate()
    assert numbers([next(batches), next(batches)]) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    with pytest.raises(DataError, match="sample 11 can't be read: numbers-11.txt is broken") as caught:
        next(batches)
    notes = "\n".join(caught.value.__notes__)
    assert "batch 2 of epoch 0 (position 2, rank 0)" in notes and data.position == 2
    if workers:
        assert "in worker" in notes and 'raise DataError(f"numbers-{index}.txt is broken")' in notes


@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_leaves_samples_out_and_counts_them(workers: int) -> None:
    data = DistributedDataset(Numbers(20, broken=(3, 11)), 5, workers, shuffle=False, on_error="skip")
    assert sum(numbers(data), []) == [index for index in range(20) if index not in (3, 11)]
    assert data.skipped == 2
    with pytest.raises(DataError, match="no sample of the batch"):
        list(DistributedDataset(Numbers(4, broken=(0, 1)), 2, workers, shuffle=False, on_error="skip"))


class Flaky(Numbers):
    """Fails the first two times that sample 3 is read; the count is in a file, for it is read in workers."""

    def __init__(self, folder: Path) -> None:
        super().__init__(8)
        self.log = folder / "log"

    def read(self, index: int) -> dict[str, Any]:
        if index == 3:
            with open(self.log, "a") as handle:
                handle.write("x")
            if self.log.stat().st_size < 3:
                raise OSError("the network is away")
        return super().read(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_retrying_reads_again(workers: int, tmp_path: Path) -> None:
    options = {"shuffle": False, "on_error": "retry", "backoff": 0.001}
    assert sum(numbers(DistributedDataset(Flaky(tmp_path), 4, workers, retries=2, **options)), []) == list(range(8))
    (tmp_path / "log").unlink()
    with pytest.raises(DataError, match="sample 3") as caught:
        list(DistributedDataset(Flaky(tmp_path), 4, workers, retries=1, **options))
    assert "the network is away" in str(caught.value)


def test_global_random_numbers_differ_between_batches_and_repeat() -> None:
    def noisy(samples: list[Any]) -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    runs = [list(DistributedDataset(Rows(), 2, workers, noisy)) for workers in (1, 3)]
    assert runs[0] == runs[1] and len({tuple(draws) for draws in runs[0]}) == 5


def test_what_can_not_be_sent_is_reported() -> None:
    data = DistributedDataset(Rows(), 2, 1, lambda samples: (part for part in samples))
    with pytest.raises(DataError, match="can't be put together"):
        next(iter(data))
    with pytest.raises(ConfigError, match="can't be sent to a worker"):
        next(iter(DistributedDataset(Rows(), 2, 1, lambda samples: samples, start_method="spawn")))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"num_workers": -1}, "num_workers"),
        ({"prefetch": 0}, "prefetch"),
        ({"timeout": 0}, "timeout"),
        ({"on_error": "ignore"}, "on_error"),
        ({"retries": -1}, "retries"),
        ({"shuffle": "chunks"}, "shuffle"),
        ({"shuffle": "blocks"}, "blocks"),
        ({"length_buckets": -1}, "length_buckets"),
        ({"start_method": "thread"}, "start_method"),
        ({"pin_memory": "yes"}, "pin_memory"),
        ({"seed": -1}, "seed"),
        ({"source": 5}, "no data set"),
        ({"source": Rows(), "length_buckets": 2}, "lengths"),
    ],
)
def test_wrong_arguments_are_refused(options: dict, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        DistributedDataset(**{"source": Numbers(10), "num_workers": 0, **options})


def test_pinning_keeps_the_form_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    batch = pinned({"a": [torch.zeros(1)], "b": Pair(torch.ones(1), "text"), "c": (torch.zeros(1), 3)})
    assert batch == {"a": [torch.ones(1)], "b": Pair(torch.tensor([2.0]), "text"), "c": (torch.ones(1), 3)}


@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_batches_come_the_same_way(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    data = DistributedDataset(Numbers(40), 4, workers)
    assert sorted(sum(numbers(data), [])) == list(range(40))
    for _ in data:
        break
    data.close()


def test_pinning_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="can't be pinned"):
        DistributedDataset(Numbers(10), 4, 0, pin_memory=True)


def test_a_path_is_opened_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "line {number}"}}\n' for number in range(9)))
    data = DistributedDataset(tmp_path / "a.jsonl", 4, 2, list, shuffle=False)
    samples = sum(data, [])
    assert [sample["text"] for sample in samples] == [f"line {number}" for number in range(9)]
    assert [(sample["index"], sample["epoch"]) for sample in samples] == [(number, 0) for number in range(9)]


class Circles:
    """Points and whether they lie within a circle, as images of one line."""

    def __len__(self) -> int:
        return 160

    def read(self, index: int) -> dict[str, Any]:
        values = torch.randn(4, generator=torch.Generator().manual_seed(index))
        return {"pixel_values": values, "label": int(values.square().sum() > 3.5)}


class PixelMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, pixel_values: torch.Tensor, **_: torch.Tensor) -> torch.Tensor:
        return self.layers(pixel_values)


def test_a_trainer_takes_it() -> None:
    losses = []
    for workers in (0, 2):
        torch.manual_seed(0)
        data = DistributedDataset(Circles(), 16, workers, seed=1)
        validation = DistributedDataset(Circles(), 32, 0, shuffle=False)
        options = {"model": PixelMLP(), "task": ImageClassification(), "learning_rate": 1e-2}
        losses.append(trainer(train_dataset=data, val_dataset=validation, **options).train(epochs=6).losses)
    assert losses[0] == losses[1] and len(losses[0]) == 60
    assert losses[0][-1] < 0.7 * losses[0][0]
