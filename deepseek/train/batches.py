"""Where a run's batches come from: anything that can be read from a position on.

A position counts micro-batches over all epochs. `data.Loader` seeks in O(1); a plain list does too; any other iterable
is read again from its start in each epoch, and skipped forward on resume.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

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
    """Any iterable that can be read more than once, such as a torch DataLoader."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches
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
        skip = start % max(1, len(self)) if start else 0
        while True:
            empty = True
            for index, batch in enumerate(self.batches):
                empty = False
                if index >= skip:
                    yield batch
            if empty:
                raise DataError("the data gave no batch", wanted="at least one in every pass")
            skip = 0


def as_stream(data: Any) -> BatchStream:
    """Return `data` as a BatchStream. Raises DataError for what can't be iterated."""
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
        return IterableBatches(data)
    raise DataError(
        "training data of an unknown kind",
        found=type(data).__name__,
        wanted="a path, a Loader, a list of batches, or an iterable of batches",
    )
