"""Batches in an order that follows from (seed, epoch, index) alone, read ahead by a thread.

A position is one integer: the number of batches before it, over all epochs. Going on from a position costs the same
wherever it is. Not here: what a sample holds (`packing`), and devices.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepseek.data.loaders.ahead import Ahead
from deepseek.data.loaders.orders import EpochOrders, shuffled
from deepseek.errors import ConfigError, DataError


class BatchSource(Protocol):
    """What a loader reads: a number of samples, and any set of them at once as arrays of (samples, ...)."""

    def __len__(self) -> int: ...

    def get_batch(self, epoch: int, indices: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]: ...


class Loader:
    """Batches of `batch_size` samples for this rank, as dicts of tensors (batch_size, ...).

    With `shuffle`, samples come in another order in every epoch. A step takes `batch_size * world_size` samples, of
    which each rank gets its own part. With `drop_last` what is left at the end of an epoch stays out; without, it
    makes a last, smaller batch, spread over the ranks (and stays out only if there are fewer samples than ranks).

    `position` is the number of batches given out so far, over all epochs; set it, or pass it to `iterate`, to go on.
    `prefetch` batches are made ahead by a thread; 0 makes each when it is asked for.

    Raises ConfigError for a wrong argument, DataError when an epoch has no batch.
    """

    def __init__(
        self,
        dataset: BatchSource,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
    ) -> None:
        if batch_size < 1 or prefetch < 0:
            raise ConfigError(
                "batch_size or prefetch is too small",
                found=f"batch_size={batch_size}, prefetch={prefetch}",
                wanted="batch_size at least 1, prefetch at least 0",
            )
        if not 0 <= rank < world_size:
            raise ConfigError(
                "rank is out of range", found=f"rank {rank} of {world_size}", wanted="0 <= rank < world_size"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.prefetch = prefetch
        self.position = 0
        self._orders = EpochOrders(functools.partial(shuffled, len(dataset), seed))
        samples, together = len(dataset), batch_size * world_size
        left = samples % together
        self._length = samples // together + (1 if not drop_last and left >= world_size else 0)
        if self._length == 0:
            raise DataError(
                "the data does not fill one batch",
                found=f"{samples} sequences",
                wanted=f"at least {together if drop_last else world_size} ({world_size} ranks x batch_size)",
                fix="lower batch_size or max_length, or add data",
            )

    def __len__(self) -> int:
        """Return the batches of an epoch, the same for every epoch and rank."""
        return self._length

    def batch_at(self, epoch: int, index: int) -> dict[str, Tensor]:
        """Return batch `index` of an epoch, always the same. Raises IndexError."""
        if epoch < 0 or not 0 <= index < self._length:
            raise IndexError(
                f"no batch {index} in epoch {epoch}; wanted 0 to {self._length - 1} and an epoch from 0 on"
            )
        together = self.batch_size * self.world_size
        begin, end = index * together, min((index + 1) * together, len(self.dataset))
        share, extra = divmod(end - begin, self.world_size)
        begin += self.rank * share + min(self.rank, extra)
        mine = self._order(epoch, begin, begin + share + (self.rank < extra))
        return {name: torch.from_numpy(value) for name, value in self.dataset.get_batch(epoch, mine).items()}

    def iterate(self, start: int | None = None) -> Iterator[dict[str, Tensor]]:
        """Give out batches without end, from position `start` (by default `position`) through epoch after epoch.

        An error in making a batch is raised when that batch's turn comes, with the batch named in its notes.
        Raises ConfigError for a negative position.
        """
        position = self.position if start is None else start
        if position < 0:
            raise ConfigError("a position can't be negative", found=position, wanted="at least 0")
        return self._run(position)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Give out the rest of the epoch that `position` is in: a whole one each time, if each is read to its end."""
        position = self.position
        return self._run(position, (position // self._length + 1) * self._length)

    def _run(self, position: int, stop: int | None = None) -> Iterator[dict[str, Tensor]]:
        positions = itertools.count(position) if stop is None else range(position, stop)
        if self.prefetch == 0:
            for position in positions:
                batch = self._make(position)
                self.position = position + 1
                yield batch
            return
        with contextlib.closing(Ahead(self._make, position, stop, self.prefetch)) as ahead:
            for position in positions:
                batch = ahead.get()
                self.position = position + 1
                yield batch

    def _make(self, position: int) -> dict[str, Tensor]:
        epoch, index = divmod(position, self._length)
        try:
            return self.batch_at(epoch, index)
        except Exception as error:
            error.add_note(f"while making batch {index} of epoch {epoch} (position {position}, rank {self.rank})")
            raise

    def _order(self, epoch: int, begin: int, end: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(begin, end)
        return self._orders(epoch)[begin:end]
