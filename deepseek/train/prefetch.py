"""Batches prepared ahead by one thread, and copied to the GPU on a stream of its own, while the model computes.

Worth it where preparing a batch costs a noticeable share of a step and nothing else does it ahead: `decide` measures
that. Not for batches made with the global random numbers (`IterableBatches`): a thread would mix its draws with those
of the model, and a run would never be the same twice. Not here: worker processes (`data.DistributedDataset`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from deepseek.checkpoint.training_state import random_state, restore_random_state
from deepseek.data import Loader
from deepseek.data.loaders.ahead import Ahead
from deepseek.data.loaders.distributed_dataset import DistributedDataset
from deepseek.errors import ConfigError
from deepseek.hardware import physical_cores
from deepseek.train.batches import BatchStream, IterableBatches, ListBatches

_END = object()


class Readable(Protocol):
    """What can be read from a position on: a stream of batches, or of the groups that make steps."""

    def iterate(self, start: int = 0) -> Iterator[Any]:
        """Give out what comes from position `start` on."""
        ...


def check_prefetch(stream: BatchStream) -> None:
    """Raise ConfigError for batches made with the global random numbers: a thread would mix its draws with others."""
    if isinstance(stream, IterableBatches):
        raise ConfigError(
            "these batches can't be made ahead by a thread",
            found=type(stream.batches).__name__,
            wanted="a Loader, a DistributedDataset, a list, or another stream that can be read from a position on",
            fix="prefetch: auto, and let it work ahead by itself: DataLoader(..., num_workers=2)",
        )


def prefetch(stream: Readable, start: int = 0, depth: int = 2, device: torch.device | None = None) -> Generator[Any]:
    """Give out what `stream.iterate(start)` does, made up to `depth` ahead by a thread that ends with the iterator."""
    on_gpu = device is not None and device.type == "cuda"
    copier = _Copier(device) if on_gpu and device is not None else None
    with contextlib.ExitStack() as stack:
        source = stream.iterate(start)
        stack.callback(getattr(source, "close", lambda: None))

        def make(position: int) -> Any:
            try:
                batch = next(source, _END)
            except Exception as error:
                error.add_note("while preparing a batch ahead of its turn")
                raise
            return batch if copier is None or batch is _END else copier.copy(batch)

        ahead = stack.enter_context(contextlib.closing(Ahead(make, start, None, depth)))
        while (batch := ahead.get()) is not _END:
            yield batch if copier is None else copier.ready(*batch)


class _Copier:
    """Copies batches to a GPU through pinned memory on a side stream; the main stream waits for the copy alone."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.side: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(self, batch: Any) -> tuple[Any, torch.cuda.Event]:
        """Begin the copy, in the thread that prepares; return the batch on the device and what marks its end."""
        with torch.cuda.stream(self.side):
            moved = map_tensors(batch, self._move)
            return moved, self.side.record_event()

    def ready(self, batch: Any, copied: torch.cuda.Event) -> Any:
        """Let the caller's stream wait for the copy; its memory is not reused before that stream is done with it."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(copied)
        map_tensors(batch, lambda tensor: tensor.record_stream(current))
        return batch

    def _move(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == "cpu" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def map_tensors(batch: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return the batch with `function` of each tensor in place of it; in dicts, lists, tuples and named tuples."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(value, function) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(value, function) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(map_tensors(value, function) for value in batch)
    return batch


class Decision(NamedTuple):
    """Whether to prefetch, why, and the seconds that preparing one micro-batch took (0 where it was not measured)."""

    prefetch: bool
    reason: str
    seconds: float = 0.0


class _Measured(NamedTuple):
    seconds: float
    """Of a batch, the median; the first is left out."""
    waiting: float
    """Those of them in which the thread did nothing: disks, networks, other processes."""
    random: bool
    """Whether global random numbers were drawn."""


def decide(
    stream: BatchStream,
    micro_batch_seconds: float,
    device: torch.device | None = None,
    *,
    share: float = 0.05,
    probe: int = 8,
    limit: float = 1.0,
) -> Decision:
    """Return whether `prefetch` of it pays: it would save more than `share` of `micro_batch_seconds`.

    `micro_batch_seconds` is what the model needs for one. Where the model computes on all cores, a thread beside it
    saves only what preparing spends waiting; with a core to spare, all of it. A CUDA device always pays, for the copy.
    Reads up to `probe` batches from the beginning, for about `limit` seconds at most, and leaves the random numbers as
    they were.
    """
    if isinstance(stream, IterableBatches):
        return Decision(False, "the batches may be made with the global random numbers")
    works_ahead = isinstance(stream, DistributedDataset) or (isinstance(stream, Loader) and stream.prefetch > 0)
    on_gpu = device is not None and device.type == "cuda"
    copies = Decision(True, "copies to the GPU go on while it computes")
    if works_ahead:
        return copies if on_gpu else Decision(False, "the data is read ahead already")
    if isinstance(stream, ListBatches):
        return copies if on_gpu else Decision(False, "the batches are in memory")
    found = _measure(stream, probe, limit)
    if found.random:
        return Decision(False, "the batches are made with the global random numbers", found.seconds)
    if on_gpu:
        return copies._replace(seconds=found.seconds)
    spare = torch.get_num_threads() < physical_cores()
    saved = found.seconds if spare else found.waiting
    part = saved / micro_batch_seconds if micro_batch_seconds > 0 else 0.0
    what = "preparing a batch takes" if spare else "no core is free, and preparing a batch waits for"
    return Decision(part > share, f"{what} {part:.1%} of its step", found.seconds)


def _measure(stream: BatchStream, probe: int, limit: float) -> _Measured:
    before, source = random_state(), stream.iterate(0)
    times: list[tuple[float, float]] = []
    began = time.perf_counter()
    try:
        while len(times) <= probe and time.perf_counter() - began < limit:
            start, busy = time.perf_counter(), time.thread_time()
            if next(source, _END) is _END:
                break
            seconds = time.perf_counter() - start
            times.append((seconds, max(0.0, seconds - (time.thread_time() - busy))))
        drawn = not _same(before, random_state())
    finally:
        getattr(source, "close", lambda: None)()
        restore_random_state(before)
    taken = times[1:] or times or [(0.0, 0.0)]
    middle = len(taken) // 2
    return _Measured(sorted(wall for wall, _ in taken)[middle], sorted(idle for _, idle in taken)[middle], drawn)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return all(_same(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    return bool(first == second)
