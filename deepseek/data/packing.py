"""Training sequences out of a token cache: documents in shuffled order, end to end, cut into full sequences.

No padding: a sequence holds the end of one document and the start of the next. Which tokens sequence `index` of
epoch `epoch` holds follows from (seed, epoch, index) alone. Not here: batches and their order (`loader`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deepseek.data.token_cache import TokenCache
from deepseek.errors import ConfigError, DataError

Split = Literal["train", "val"]
IGNORED = -100
_SPLIT, _DOCUMENTS = 1, 2


class PackedDataset:
    """Sequences of `max_length` tokens of one split of a cache.

    The split's documents, in an order shuffled anew for every epoch (in the cache's order for "val"), make one
    stream; sequence i is its tokens [i * max_length, (i + 1) * max_length) and its labels are the next tokens, so
    every token is once an input and once a label; only a remainder shorter than a sequence stays out. Long documents
    go on in later sequences. With `isolate_documents`, labels that belong to another document than their input are
    -100 and `document_ids` tells the documents of a sequence apart, for attention to stay inside each.

    `val_fraction` of the documents, chosen by a hash of (seed, document number), are "val", the others "train"; they
    never overlap. Where that would be less than one document (a single text file), the last `val_fraction` of all
    tokens is "val" instead.

    Raises ConfigError for a wrong argument, DataError when the split is shorter than one sequence and its labels.
    """

    def __init__(
        self,
        cache: TokenCache,
        max_length: int,
        *,
        isolate_documents: bool = False,
        seed: int = 0,
        split: Split = "train",
        val_fraction: float = 0.0,
    ) -> None:
        if max_length < 1:
            raise ConfigError("max_length is too small", found=max_length, wanted="at least 1")
        if split not in ("train", "val"):
            raise ConfigError("unknown split", found=repr(split), wanted="'train' or 'val'")
        if not 0.0 <= val_fraction < 1.0 or (split == "val" and val_fraction == 0.0):
            raise ConfigError(
                "val_fraction is out of range", found=val_fraction, wanted="at least 0 (for 'val' more) and below 1"
            )
        self.cache = cache
        self.max_length = max_length
        self.isolate_documents = isolate_documents
        self.seed = seed
        self.split: Split = split
        self._starts, self._lengths = split_documents(cache.offsets, split, val_fraction, seed)
        self.num_documents = len(self._starts)
        self.num_tokens = int(self._lengths.sum())
        self._streams: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        if self.num_tokens <= max_length:
            raise DataError(
                f"the {split} split is shorter than one sequence",
                found=f"{self.num_tokens} tokens in {self.num_documents} documents",
                wanted=f"at least max_length + 1 = {max_length + 1} tokens",
                fix="lower max_length, add data" + (", or raise val_fraction" if split == "val" else ""),
            )

    def __len__(self) -> int:
        """Return the sequences of an epoch, the same for every epoch."""
        return (self.num_tokens - 1) // self.max_length

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, NDArray[np.int64]]:
        """Return sequence `index` of epoch 0, or `(epoch, index)`; arrays (max_length,) int64. Raises IndexError."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        batch = self.get_batch(epoch, np.array([index], dtype=np.int64))
        return {name: value[0] for name, value in batch.items()}

    def get_batch(self, epoch: int, indices: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Return the sequences `indices` of an epoch: `input_ids`, `labels` and, where isolated, `document_ids`.

        Each is (len(indices), max_length) int64. A label is -100 where nothing is to be learned. Document ids count
        from 0 in every sequence. Raises IndexError.
        """
        if len(indices) and not (0 <= indices.min() and indices.max() < len(self)):
            raise IndexError(
                f"sequence index out of range: {indices.min()} to {indices.max()}, wanted 0 to {len(self) - 1}"
            )
        positions, documents = self._locate(epoch, indices)
        window = self.cache.tokens[positions].astype(np.int64)  # (batch, max_length + 1)
        labels = window[:, 1:].copy()
        if self.cache.loss_mask is not None:
            labels[self.cache.loss_mask[positions[:, 1:]] == 0] = IGNORED
        batch = {"input_ids": np.ascontiguousarray(window[:, :-1]), "labels": labels}
        if documents is not None:
            labels[documents[:, 1:] != documents[:, :-1]] = IGNORED
            batch["document_ids"] = np.ascontiguousarray(documents[:, :-1])
        return batch

    def _locate(self, epoch: int, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """Return where in the cache each token of each window is, and its document's number in the window.

        Both (batch, max_length + 1). Works run by run: a run is the part of one document inside one window.
        """
        starts, bounds = self._stream(epoch)
        width = self.max_length + 1
        begin = indices * self.max_length  # (batch,) where windows begin in the stream
        first = np.searchsorted(bounds, begin, side="right") - 1
        counts = np.searchsorted(bounds, begin + width, side="left") - first  # documents each window touches
        total = int(counts.sum())
        ordinal = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
        document = ordinal + np.repeat(first, counts)
        window = np.repeat(begin, counts)
        run_begin = np.maximum(bounds[document], window)
        length = np.minimum(bounds[document + 1], window + width) - run_begin
        shift = starts[document] - bounds[document] + run_begin - (np.cumsum(length) - length)
        shape = (len(indices), width)
        positions = (np.repeat(shift, length) + np.arange(shape[0] * width)).reshape(shape)
        return positions, np.repeat(ordinal, length).reshape(shape) if self.isolate_documents else None

    def _stream(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the epoch's documents in order: where each begins in the cache, and its bounds in the stream."""
        found = self._streams.get(epoch)
        if found is None:
            starts, lengths = self._starts, self._lengths
            if self.split == "train":
                order = keyed_order(len(starts), self.seed, epoch, _DOCUMENTS)
                starts, lengths = starts[order], lengths[order]
            found = starts, np.concatenate(([0], np.cumsum(lengths)))
            # two epochs are kept, since a loader that reads ahead is in both for a while
            last = dict(list(self._streams.items())[-1:])
            self._streams = {**last, epoch: found}
        return found


def split_documents(
    offsets: NDArray[np.int64], split: Split, val_fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return start and length of every document (or part of one) of a split; see `PackedDataset`."""
    starts, lengths = offsets[:-1], np.diff(offsets)
    count = len(starts)
    if val_fraction > 0.0:
        chosen = round(val_fraction * count)
        if 1 <= chosen < count:
            is_val = np.zeros(count, dtype=np.bool_)
            is_val[keyed_order(count, seed, 0, _SPLIT)[:chosen]] = True
            keep = is_val if split == "val" else ~is_val
            starts, lengths = starts[keep], lengths[keep]
        else:
            cut = int(offsets[-1]) - round(val_fraction * int(offsets[-1] - offsets[0]))
            ends = np.maximum(offsets[1:], cut) if split == "val" else np.minimum(offsets[1:], cut)
            starts = np.maximum(starts, cut) if split == "val" else starts
            lengths = ends - starts
    keep = lengths > 0
    return starts[keep].astype(np.int64), lengths[keep].astype(np.int64)


def keyed_order(count: int, seed: int, epoch: int, purpose: int) -> NDArray[np.int64]:
    """Return a permutation of 0..count-1 that depends on the arguments alone, on every machine and version.

    The numbers are sorted by their SplitMix64 hash (Steele et al. 2014, https://doi.org/10.1145/2714064.2660195).
    """
    key = np.uint64(0)
    for part in (seed, epoch, purpose):
        key = _mix(np.array([(int(key) ^ part) & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))[0]
    numbers = np.arange(count, dtype=np.uint64)
    return np.argsort(_mix(numbers + key), kind="stable")


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the SplitMix64 hash of each value; arithmetic is modulo 2**64."""
    mixed = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
