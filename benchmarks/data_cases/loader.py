"""Small samples per second through worker processes: what the loader itself costs.

Ours is `DistributedDataset`; the peer is torch's DataLoader with an endless sampler and `prefetch_factor` 4, on the
same dataset, in the same batch size. Both join samples by the same function. Items are samples.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from benchmarks.data_cases.case import OURS, Measure
from deepseek.data.loaders import DistributedDataset

PEER = "torch DataLoader"
MEASURES = (
    Measure("small samples", "samples per second", targets={PEER: 1.0}, tolerance={"sum": 0.0}),
    Measure("large batches", "samples per second", targets={PEER: 1.0}, tolerance={"sum": 0.0}),
)
BATCH, WORKERS = 256, 2


class Rows:
    """Samples out of one array in memory: a vector of `width` and its number."""

    def __init__(self, count: int, width: int) -> None:
        self.values = torch.from_numpy(np.random.default_rng(0).standard_normal((count, width), dtype=np.float32))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.values[index], index


def prepare(folder: Path, quick: bool) -> None:
    """Write nothing: the samples are made in memory."""


def run(measure: str, contestant: str, folder: Path, quick: bool) -> tuple[float, dict[str, float]]:
    """Return samples per second, and the sum of the numbers of an epoch."""
    data = Rows(65536, 32) if measure == "small samples" else Rows(4096, 16384)
    batches = ours(data) if contestant == OURS else theirs(data)
    epoch = len(data) // BATCH
    total = sum(int(next(batches)[1].sum()) for _ in range(epoch))
    seen, start = 0, time.perf_counter()
    while time.perf_counter() - start < (2.0 if quick else 8.0):
        for _ in range(16):
            seen += len(next(batches)[1])
    return seen / (time.perf_counter() - start), {"sum": float(total)}


def ours(data: Rows) -> Iterator[Any]:
    """Return batches without end."""
    return DistributedDataset(data, BATCH, WORKERS, default_collate, prefetch=4).iterate()


class Endless:
    """One shuffled epoch after another, so that the peer reads ahead over their ends as ours does."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(self.count).tolist()


def theirs(data: Rows) -> Iterator[Any]:
    """Return batches without end."""
    loader: DataLoader[Any] = DataLoader(
        data,  # type: ignore[arg-type]
        BATCH,
        sampler=Endless(len(data)),  # type: ignore[arg-type]
        num_workers=WORKERS,
        prefetch_factor=4,
    )
    yield from loader
