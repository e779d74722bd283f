"""Packing: every token of a split once, labels the next token, splits apart, order a pure function of its seeds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.data.packing import IGNORED, PackedDataset, keyed_order, split_documents
from deepseek.data.token_cache import TokenCache
from deepseek.errors import ConfigError, DataError

GOLDEN = ([1, 7, 9, 8, 3, 2, 4, 6, 5, 0], [5, 3, 1, 6, 7, 4, 0, 2, 9, 8])
LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=25)


def make(lengths: list[int], mask: np.ndarray | None = None) -> TokenCache:
    """Return a cache whose token at position i is i, so that every token tells where it is from."""
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return TokenCache(np.arange(offsets[-1], dtype=np.uint32), offsets, 1 << 20, mask)


def everything(data: PackedDataset, epoch: int) -> dict[str, np.ndarray]:
    return data.get_batch(epoch, np.arange(len(data)))


@given(LENGTHS, st.integers(1, 20), st.integers(0, 2**63 - 1), st.integers(0, 5))
def test_every_token_is_an_input_once_and_only_a_remainder_stays_out(
    lengths: list[int], width: int, seed: int, epoch: int
) -> None:
    cache = make(lengths)
    if cache.num_tokens <= width:
        with pytest.raises(DataError, match="shorter than one sequence"):
            PackedDataset(cache, width, seed=seed)
        return
    data = PackedDataset(cache, width, seed=seed)
    batch = everything(data, epoch)
    inputs = batch["input_ids"].ravel()
    assert batch["input_ids"].shape == batch["labels"].shape == (len(data), width)
    assert batch["input_ids"].dtype == batch["labels"].dtype == np.int64
    assert len(np.unique(inputs)) == len(inputs)
    assert 1 <= cache.num_tokens - len(inputs) <= width
    assert np.array_equal(batch["labels"].ravel()[:-1], inputs[1:])  # no label is lost between sequences


@given(LENGTHS, st.integers(1, 20), st.integers(0, 3))
def test_the_stream_is_whole_documents_one_after_the_other(lengths: list[int], width: int, epoch: int) -> None:
    cache = make(lengths)
    if cache.num_tokens <= width:
        return
    batch = everything(PackedDataset(cache, width), epoch)
    stream = [*batch["input_ids"].ravel().tolist(), int(batch["labels"][-1, -1])]
    starts, ends = set(cache.offsets[:-1].tolist()), set((cache.offsets[1:] - 1).tolist())
    assert stream[0] in starts
    for here, there in zip(stream, stream[1:], strict=False):
        assert there == here + 1 or (here in ends and there in starts)
        assert here not in ends or there in starts


@given(LENGTHS, st.integers(1, 20), st.integers(0, 3))
def test_isolated_documents_have_no_label_across_and_their_own_ids(lengths: list[int], width: int, epoch: int) -> None:
    cache = make(lengths)
    if cache.num_tokens <= width:
        return
    plain = everything(PackedDataset(cache, width), epoch)
    isolated = everything(PackedDataset(cache, width, isolate_documents=True), epoch)
    owner = np.searchsorted(cache.offsets, isolated["input_ids"], side="right")
    next_owner = np.searchsorted(cache.offsets, plain["labels"], side="right")
    assert np.array_equal(isolated["input_ids"], plain["input_ids"])
    assert np.array_equal(isolated["labels"], np.where(owner == next_owner, plain["labels"], IGNORED))
    ids = isolated["document_ids"]
    assert (ids[:, 0] == 0).all()
    assert np.array_equal(np.diff(ids, axis=1), (np.diff(owner, axis=1) != 0).astype(np.int64))


@given(LENGTHS, st.integers(1, 10), st.randoms(use_true_random=False))
def test_a_label_that_is_not_to_be_learned_is_ignored(lengths: list[int], width: int, random) -> None:
    total = sum(lengths)
    if total <= width:
        return
    mask = np.array([random.randint(0, 1) for _ in range(total)], dtype=np.uint8)
    plain = everything(PackedDataset(make(lengths), width), 1)
    masked = everything(PackedDataset(make(lengths, mask), width), 1)
    assert np.array_equal(masked["labels"], np.where(mask[plain["labels"]] == 1, plain["labels"], IGNORED))


@given(LENGTHS, st.floats(0.01, 0.99), st.integers(0, 1000))
def test_train_and_validation_share_no_token_and_miss_none(lengths: list[int], fraction: float, seed: int) -> None:
    offsets = make(lengths).offsets
    parts = {}
    for split in ("train", "val"):
        starts, sizes = split_documents(offsets, split, fraction, seed)
        assert (sizes > 0).all()
        parts[split] = {
            token for start, size in zip(starts, sizes, strict=True) for token in range(start, start + size)
        }
    assert not parts["train"] & parts["val"]
    assert parts["train"] | parts["val"] == set(range(offsets[-1]))


def test_validation_takes_its_share_of_the_documents_by_seed() -> None:
    cache = make([10] * 200)
    val = PackedDataset(cache, 4, split="val", val_fraction=0.1, seed=1)
    train = PackedDataset(cache, 4, split="train", val_fraction=0.1, seed=1)
    assert (val.num_documents, train.num_documents, val.num_tokens, train.num_tokens) == (20, 180, 200, 1800)
    other = PackedDataset(cache, 4, split="val", val_fraction=0.1, seed=2)
    assert not np.array_equal(everything(val, 0)["input_ids"], everything(other, 0)["input_ids"])
    documents = everything(val, 0)["input_ids"].ravel() // 10
    assert (np.diff(documents) >= 0).all()  # in the cache's order
    assert np.array_equal(everything(val, 0)["input_ids"], everything(val, 7)["input_ids"])


@pytest.mark.parametrize("lengths", [[1000], [700, 200, 100]])
def test_too_few_documents_are_split_at_a_token(lengths: list[int]) -> None:
    cache = make(lengths)
    train = everything(PackedDataset(cache, 9, val_fraction=0.1), 0)["input_ids"]
    val = everything(PackedDataset(cache, 9, split="val", val_fraction=0.1), 0)["input_ids"]
    assert train.max() < 900
    assert val.ravel().tolist() == list(range(900, 999))


def test_a_sequence_is_its_row_of_a_batch() -> None:
    data = PackedDataset(make([7, 3, 12, 5, 9]), 4, isolate_documents=True, seed=3)
    batch = data.get_batch(2, np.array([5, 0, 5, 3]))
    for row, index in enumerate((5, 0, 5, 3)):
        for name, value in data[2, index].items():
            assert value.shape == (4,) and np.array_equal(value, batch[name][row])
    assert np.array_equal(data[1]["input_ids"], data[0, 1]["input_ids"])
    assert sum(1 for _ in data) == len(data)
    assert data.get_batch(0, np.array([], dtype=np.int64))["input_ids"].shape == (0, 4)


@pytest.mark.parametrize("index", [-1, 8])
def test_an_index_out_of_range_is_an_index_error(index: int) -> None:
    data = PackedDataset(make([33]), 4)
    assert len(data) == 8
    with pytest.raises(IndexError, match="wanted 0 to 7"):
        data[0, index]


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    cache = make([5] * 50)
    first = PackedDataset(cache, 10, seed=1)
    wanted = [everything(first, epoch)["input_ids"] for epoch in range(4)]
    for epoch in (3, 0, 2, 1, 0):  # in any order of asking, by any object
        assert np.array_equal(everything(first, epoch)["input_ids"], wanted[epoch])
        assert np.array_equal(everything(PackedDataset(cache, 10, seed=1), epoch)["input_ids"], wanted[epoch])
    assert not np.array_equal(wanted[0], wanted[1])
    assert not np.array_equal(everything(PackedDataset(cache, 10, seed=2), 0)["input_ids"], wanted[0])


@given(st.integers(0, 300), st.integers(0, 2**63 - 1), st.integers(0, 10))
def test_a_keyed_order_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    assert sorted(keyed_order(count, seed, epoch, 1).tolist()) == list(range(count))


def test_keyed_orders_never_change() -> None:
    """A checkpoint resumed by a later version must find the same order."""
    assert keyed_order(10, 0, 0, 1).tolist() == GOLDEN[0]
    assert keyed_order(10, 1234, 5, 2).tolist() == GOLDEN[1]
    assert keyed_order(10, 1235, 5, 2).tolist() != GOLDEN[1]
    assert keyed_order(10, 1234, 6, 2).tolist() != GOLDEN[1]
    assert keyed_order(10, 1234, 5, 3).tolist() != GOLDEN[1]


def test_keyed_orders_put_each_number_everywhere_alike() -> None:
    places = np.array([np.argsort(keyed_order(8, seed, epoch, 1)) for seed in range(40) for epoch in range(50)])
    counts = np.array([np.bincount(places[:, number], minlength=8) for number in range(8)])
    assert (np.abs(counts - 250) < 5 * np.sqrt(250)).all()


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 0},
        {"max_length": 4, "split": "test"},
        {"max_length": 4, "split": "val"},
        {"max_length": 4, "val_fraction": 1.0},
        {"max_length": 4, "val_fraction": -0.1},
        {"max_length": 4, "val_fraction": float("nan")},
    ],
)
def test_wrong_arguments_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        PackedDataset(make([100]), **options)


def test_a_split_that_is_too_short_says_the_tokens_it_has() -> None:
    with pytest.raises(DataError) as caught:
        PackedDataset(make([100]), 16, split="val", val_fraction=0.1)
    message = str(caught.value)
    assert "10 tokens in 1 documents" in message and "max_length + 1 = 17" in message and "val_fraction" in message
    assert len(PackedDataset(make([17]), 16)) == 1
