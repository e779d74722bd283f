"""Where a run's batches come from: anything that can be read from a position on.

A position counts micro-batches over all epochs. `data.Loader` seeks in O(1); a plain list does too; any other iterable
is read again from its start in each epoch, and skipped forward on resume.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from deepseek.checkpoint.training_state import random_state, restore_random_state, seed_random
from deepseek.errors import DataError


@runtime_checkable
class BatchStream(Protocol):
    """Batches in a fixed order: `len` of an epoch, and an endless iterator from a position."""

    def __len__(self) -> int: ...

    def iterate(self, start: int | None = None) -> Iterator[Any]:
        """Yield batches from position `start` on, epoch after epoch."""
        ...


class ListBatches:
    """A list of batches, again and again."""

    def __init__(self, batches: Sequence[Any]) -> None:
        if not batches:
            raise DataError("there is no batch to train on", wanted="at least one")
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def iterate(self, start: int | None = None) -> Iterator[Any]:
        """Yield batches from position `start` on."""
        for position in itertools.count(start or 0):
            yield self.batches[position % len(self.batches)]


class IterableBatches:
    """Any iterable that can be read more than once, such as a torch DataLoader.

    What it draws from the global random numbers as an epoch begins (the order of a shuffling DataLoader) follows from
    (seed, epoch), and leaves no trace in them.
    """

    def __init__(self, batches: Iterable[Any], seed: int = 0) -> None:
        self.batches = batches
        self.seed = seed
        self._length: int | None = None

    def __len__(self) -> int:
        if self._length is None:
            try:
                self._length = len(self.batches)  # type: ignore[arg-type]
            except TypeError:
                self._length = sum(1 for _ in self.batches)
        return self._length

    def iterate(self, start: int | None = None) -> Iterator[Any]:
        """Yield batches from position `start` on; what lies before it in its epoch is read and dropped."""
        first, skip = divmod(start, max(1, len(self))) if start else (0, 0)
        for epoch in itertools.count(first):
            batches = self._begin(epoch)
            if skip:
                before = random_state()
                for _ in itertools.islice(batches, skip):
                    pass
                restore_random_state(before)
                skip = 0
            yield from batches

    def _begin(self, epoch: int) -> Iterator[Any]:
        before = random_state()
        try:
            seed_random(int.from_bytes(hashlib.sha256(f"{self.seed} {epoch}".encode()).digest()[:4], "little"))
            batches = iter(self.batches)
            for batch in batches:
                return itertools.chain([batch], batches)
        finally:
            restore_random_state(before)
        raise DataError("the data gave no batch", wanted="at least one in every pass")


def as_stream(data: Any, seed: int = 0) -> BatchStream:
    """Return `data` as a BatchStream. Raises DataError for what can't be iterated, or only once."""
    if isinstance(data, BatchStream):
        return data
    if isinstance(data, list | tuple):
        return ListBatches(data)
    if isinstance(data, Iterator):
        raise DataError(
            "the training data can be read only once",
            found=type(data).__name__,
            wanted="a list of batches, or an iterable that starts anew in each epoch (such as a DataLoader)",
        )
    if isinstance(data, Iterable):
        return IterableBatches(data, seed)
    raise DataError(
        "training data of an unknown kind",
        found=type(data).__name__,
        wanted="a path, a Loader, a list of batches, or an iterable of batches",
    )
