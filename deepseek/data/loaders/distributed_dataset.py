"""`DistributedDataset`: a data set on disk to batches, shuffled, shared among ranks, made ahead by worker processes.

Which samples batch `index` of epoch `epoch` holds follows from (seed, epoch, index), the batch size and the number of
ranks alone, whatever the number of workers. A position is one integer: the batches before it, over all epochs.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from deepseek.data.loaders.ahead import Ahead
from deepseek.data.loaders.fetch import BatchMaker, ErrorPolicy, Made, OnError
from deepseek.data.loaders.orders import EpochOrders, by_block, by_length, shuffled
from deepseek.data.loaders.ranks import default_rank
from deepseek.data.loaders.steps import Steps, Uneven
from deepseek.data.loaders.worker import Task
from deepseek.data.loaders.worker_pool import PoolSettings, StartMethod, WorkerPool
from deepseek.errors import ConfigError

_STATE = ("seed", "samples", "together")


class DistributedDataset:
    """Batches of `batch_size` samples for this rank.

    `source` is a path (the reader is chosen by its content), a Reader, or any object with `__len__` and `__getitem__`.
    `collate_fn` joins a list of samples: a `Pipeline`, a function, or None for the pipeline's own way. Samples that
    are dicts get their `index` and the `epoch`.

    Order: with `shuffle`, another one in every epoch; "blocks" keeps near the blocks of a file that decompresses them
    (see `H5Dataset`), `block_window` of them mixed. `length_buckets` of 1 and more sorts that many batches by the
    reader's `sizes()` before they are cut, so that there is less padding. What is left at the end: see `Steps`.

    `rank` and `world_size` are those of torch.distributed where it is initialised, else of $RANK and $WORLD_SIZE, else
    0 of 1.

    Workers: each of `num_workers` makes `prefetch` batches ahead; with 0, a thread does. Tensors arrive in shared
    memory. `timeout` is how many seconds a batch may take. `on_error`, `retries` and `backoff`: see `ErrorPolicy`.
    `pin_memory` "auto" pins where CUDA is there. Random numbers drawn from the global generators in a worker start
    anew with each batch; a Pipeline draws none of them.

    `position` is the number of batches given out so far; set it, or pass it to `iterate`, to go on.
    `skipped` counts the samples left out by `on_error="skip"`.

    Raises ConfigError for a wrong argument, DataError when an epoch has no batch or the source can't be read.
    """

    def __init__(
        self,
        source: Any,
        batch_size: int = 256,
        num_workers: int = 8,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        *,
        seed: int = 0,
        shuffle: bool | Literal["blocks"] = True,
        block_window: int = 16,
        length_buckets: int = 0,
        drop_last: bool = False,
        uneven: Uneven = "short",
        rank: int | None = None,
        world_size: int | None = None,
        prefetch: int = 2,
        timeout: float = 300.0,
        start_method: StartMethod = "auto",
        on_error: OnError = "raise",
        retries: int = 2,
        backoff: float = 0.1,
        pin_memory: bool | Literal["auto"] = "auto",
    ) -> None:
        self._policy = ErrorPolicy(on_error, retries, backoff)
        self._settings = PoolSettings(num_workers, prefetch, timeout, start_method)
        if not 0 <= seed < 2**63:
            raise ConfigError("seed is out of range", found=seed, wanted="0 to 2**63 - 1")
        if pin_memory not in (True, False, "auto"):
            raise ConfigError("pin_memory is wrong", found=repr(pin_memory), wanted="True, False or 'auto'")
        self._pin = torch.cuda.is_available() if pin_memory == "auto" else pin_memory
        if self._pin and not torch.cuda.is_available():
            raise ConfigError("memory can't be pinned", found="no CUDA device", fix="pass pin_memory='auto'")
        self.reader = _open(source)
        self._maker = BatchMaker(self.reader, collate_fn, self._policy)
        self.rank, self.world_size = default_rank(rank, world_size)
        self._steps = Steps(
            len(self.reader),
            batch_size,
            rank=self.rank,
            world_size=self.world_size,
            drop_last=drop_last,
            uneven=uneven,
        )
        self.batch_size = batch_size
        self.seed = seed
        self.position = 0
        self.skipped = 0
        self._orders = EpochOrders(self._order_maker(shuffle, block_window, length_buckets))
        self._open: weakref.WeakSet[contextlib.ExitStack] = weakref.WeakSet()

    def __len__(self) -> int:
        """Return the batches of an epoch, the same for every epoch and rank."""
        return len(self._steps)

    def indices_at(self, epoch: int, index: int) -> NDArray[np.int64]:
        """Return the samples of this rank's batch `index` of an epoch. Raises IndexError."""
        if epoch < 0:
            raise IndexError(f"no epoch {epoch}; wanted one from 0 on")
        return self._orders(epoch)[self._steps.places(index)]

    def batch_at(self, epoch: int, index: int) -> Any:
        """Return batch `index` of an epoch, made in this process. Raises IndexError."""
        return self._maker.make(epoch, self.indices_at(epoch, index).tolist(), _ignore).batch

    def iterate(self, start: int | None = None) -> Iterator[Any]:
        """Give out batches without end, from position `start` (by default `position`) through epoch after epoch.

        An error in making a batch is raised when that batch's turn comes; a lost worker at once.
        Raises ConfigError for a negative position.
        """
        position = self.position if start is None else start
        if position < 0:
            raise ConfigError("a position can't be negative", found=position, wanted="at least 0")
        return self._run(position)

    def __iter__(self) -> Iterator[Any]:
        """Give out the rest of the epoch that `position` is in: a whole one each time, if each is read to its end."""
        return self._run(self.position, (self.position // len(self) + 1) * len(self))

    def state_dict(self) -> dict[str, int]:
        """Return the position, and what must be equal for it to mean the same."""
        own = {"seed": self.seed, "samples": len(self.reader), "together": self._steps.together}
        return {"position": self.position, **own}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a state; the number of ranks may be another one if batch_size * world_size is the same.

        Raises ConfigError for the state of other data, another seed or another size of steps.
        """
        own = self.state_dict()
        if set(state) != set(own):
            raise ConfigError("this is no state of a DistributedDataset", found=sorted(state), wanted=str(sorted(own)))
        other = [f"{name} {state[name]} (here {own[name]})" for name in _STATE if state[name] != own[name]]
        if other or state["position"] < 0:
            raise ConfigError(
                "the state belongs to another run of the data",
                found=", ".join(other) or f"position {state['position']}",
                wanted="the same data, seed and batch_size * world_size",
            )
        self.position = state["position"]

    def close(self) -> None:
        """End the workers of iterators that were not read to their end; leaving a `for` loop does so too."""
        for stack in list(self._open):
            stack.close()

    def __enter__(self) -> DistributedDataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, position: int, stop: int | None = None) -> Iterator[Any]:
        positions: Iterable[int] = itertools.count(position) if stop is None else range(position, stop)
        with contextlib.ExitStack() as stack:
            self._open.add(stack)
            get = self._source(stack, position, stop)
            for position in positions:
                try:
                    made = get()
                except Exception as error:
                    epoch, index = divmod(position, len(self))
                    error.add_note(
                        f"while waiting for batch {index} of epoch {epoch} (position {position}, rank {self.rank})"
                    )
                    raise
                self.position = position + 1
                self.skipped += len(made.skipped)
                yield made.batch

    def _source(self, stack: contextlib.ExitStack, position: int, stop: int | None) -> Callable[[], Made]:
        """Return what gives the next batch; what it needs ends with `stack`."""
        ahead = self._settings.ahead
        if self._settings.num_workers == 0:
            return stack.enter_context(contextlib.closing(Ahead(self._make, position, stop, ahead))).get
        pool = WorkerPool(self._maker, self._task, self._settings, self._policy, position, stop)
        stack.callback(pool.close)
        if not self._pin:
            return pool.get
        copies = stack.enter_context(contextlib.closing(Ahead(lambda _: pinned(pool.get()), position, stop, ahead)))
        stack.callback(pool.interrupt)
        return copies.get

    def _task(self, position: int) -> Task:
        epoch, index = divmod(position, len(self))
        return Task(position, epoch, index, self.indices_at(epoch, index), self.seed)

    def _make(self, position: int) -> Made:
        task = self._task(position)
        made = self._maker.make(task.epoch, task.indices.tolist(), _ignore)
        return pinned(made) if self._pin else made

    def _order_maker(
        self, shuffle: bool | Literal["blocks"], window: int, pool: int
    ) -> Callable[[int], NDArray[np.int64]]:
        """Return the function from epoch to order. Raises ConfigError for settings that the reader can't serve."""
        count, seed, step = len(self.reader), self.seed, self._steps.together
        order: Callable[[int], NDArray[np.int64]]
        if shuffle not in (True, False, "blocks") or pool < 0 or window < 1:
            raise ConfigError(
                "shuffle, length_buckets or block_window is wrong",
                found=f"{shuffle!r}, {pool}, {window}",
                wanted="shuffle True, False or 'blocks'; length_buckets at least 0; block_window at least 1",
            )
        if shuffle == "blocks":
            if not hasattr(self.reader, "block_starts"):
                raise ConfigError(
                    "shuffle='blocks' needs a reader with blocks", found=type(self.reader).__name__, wanted="H5Dataset"
                )
            order = functools.partial(by_block, self.reader.block_starts(), window, seed)
        elif shuffle:
            order = functools.partial(shuffled, count, seed)
        else:
            order = functools.partial(_in_order, count)
        if pool == 0:
            return order
        sizes = self.reader.sizes() if hasattr(self.reader, "sizes") else None
        if sizes is None or len(sizes) != count:
            raise ConfigError(
                "length_buckets needs the lengths of the samples",
                found=f"{type(self.reader).__name__} without sizes()",
                wanted="a reader whose sizes() gives one number for each sample",
                fix="pass length_buckets=0",
            )
        return lambda epoch: by_length(order(epoch), sizes, step, pool, seed, epoch)


def pinned(value: Any) -> Any:
    """Return a batch with its tensors in page-locked memory, from which copies to a GPU need not wait."""
    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    if isinstance(value, Made):
        return Made(pinned(value.batch), value.skipped)
    if isinstance(value, Mapping):
        return {key: pinned(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = map(pinned, value)
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _open(source: Any) -> Any:
    """Return the reader of a path, or what was given."""
    if not isinstance(source, str | os.PathLike):
        return source
    from deepseek.data.readers.opening import open_reader

    return open_reader(Path(source))


def _in_order(count: int, _: int) -> NDArray[np.int64]:
    return np.arange(count)


def _ignore(_: int) -> None:
    """Take no note of the sample that is being read."""
