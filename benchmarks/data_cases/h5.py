"""Samples per second out of chunked gzip HDF5, shuffled, with two worker processes.

Ours is `H5Dataset` with its chunk-aware order; the peers are what users write: a Dataset on h5py that opens the file in
each worker, in a torch DataLoader with `shuffle=True`, with the default chunk cache and with one as large as ours (an
eighth of the data). Shown beside them: the peer in our order, ours in a full shuffle, and ours under
`DistributedDataset`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.data_cases.case import OURS, Measure
from deepseek.data.loaders import ChunkSampler, DistributedDataset, H5Dataset

PLAIN, LARGE_CACHE, OUR_ORDER = "h5py", "h5py with a large cache", "h5py in our order"
FULL_SHUFFLE, WITH_RANKS = "ours, full shuffle", "ours in DistributedDataset"
MEASURES = (
    Measure(
        "gzip shuffled",
        "samples per second",
        targets={PLAIN: 2.0, LARGE_CACHE: 2.0},
        references=(OUR_ORDER, FULL_SHUFFLE, WITH_RANKS),
        needs={name: "h5py" for name in (OURS, PLAIN, LARGE_CACHE, OUR_ORDER, FULL_SHUFFLE, WITH_RANKS)},
        tolerance={"sum": 0.0},
    ),
)
SHAPE, CHUNK, BATCH, WORKERS, WINDOW = (3, 64, 64), 32, 256, 2, 8


class PlainH5(Dataset[dict[str, Any]]):
    """The usual Dataset on h5py: the handle is opened by the worker that first reads."""

    def __init__(self, path: Path, cache_bytes: int | None) -> None:
        import h5py

        self.path = path
        self.options = {} if cache_bytes is None else {"rdcc_nbytes": cache_bytes, "rdcc_nslots": 100_003}
        self.handle: Any = None
        with h5py.File(path, "r") as handle:
            self.length = len(handle["label"])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        import h5py

        if self.handle is None:
            self.handle = h5py.File(self.path, "r", **self.options)
            self.image, self.label = self.handle["image"], self.handle["label"]
        return {"image": torch.from_numpy(self.image[index]), "label": int(self.label[index])}


def count(quick: bool) -> int:
    """Return the samples: 100 MB or 500 MB of images."""
    return (100 if quick else 500) * 1_000_000 // int(np.prod(SHAPE)) // CHUNK * CHUNK


def prepare(folder: Path, quick: bool) -> None:
    """Write smooth images with a little noise, which gzip makes about half as large."""
    import h5py

    rng = np.random.default_rng(0)
    rows = count(quick)
    axis = np.linspace(0, 6, SHAPE[-1], dtype=np.float32)
    with h5py.File(folder / "images.h5", "w") as handle:
        images = handle.create_dataset("image", (rows, *SHAPE), "u1", chunks=(CHUNK, *SHAPE), compression="gzip")
        handle["label"] = np.arange(rows) % 10
        for begin in range(0, rows, CHUNK):
            phase = rng.uniform(0, 6, (CHUNK, 3, 1, 1)).astype(np.float32)
            waves = np.sin(axis[:, None] + phase) + np.cos(axis[None, :] * 2 + phase)
            noise = rng.integers(0, 6, (CHUNK, *SHAPE), dtype=np.uint8)
            images[begin : begin + CHUNK] = (60 * (waves + 2)).astype(np.uint8) + noise


def run(measure: str, contestant: str, folder: Path, quick: bool) -> tuple[float, dict[str, float]]:
    """Return samples per second, and the sum over some images."""
    path = folder / "images.h5"
    cache = count(quick) * int(np.prod(SHAPE)) // 8
    dataset: Any
    if contestant in (PLAIN, LARGE_CACHE, OUR_ORDER):
        dataset = PlainH5(path, None if contestant == PLAIN else cache)
    else:
        dataset = H5Dataset(path, cache_bytes=cache)
    checked = range(0, len(dataset), len(dataset) // 50)
    outputs = {"sum": float(sum(int(dataset[index]["image"].sum()) for index in checked))}
    dataset = PlainH5(path, dataset.options.get("rdcc_nbytes")) if isinstance(dataset, PlainH5) else dataset
    if contestant == WITH_RANKS:
        loader: Any = DistributedDataset(
            dataset, BATCH, WORKERS, keep_image, shuffle="blocks", block_window=WINDOW, pin_memory=False
        )
        return rate(loader.iterate, quick), outputs
    options: dict[str, Any] = {"shuffle": True}
    if contestant in (OURS, OUR_ORDER):
        options = {"sampler": ChunkSampler(H5Dataset(path), window=WINDOW)}
    loader = DataLoader(dataset, BATCH, num_workers=WORKERS, persistent_workers=True, prefetch_factor=4, **options)
    return rate(lambda: (batch for _ in iter(int, 1) for batch in loader), quick), outputs


def keep_image(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Join samples as torch's DataLoader does: the images stay uint8."""
    return {
        "image": torch.stack([sample["image"] for sample in samples]),
        "label": torch.stack([sample["label"] for sample in samples]),
    }


def rate(batches: Callable[[], Iterable[Any]], quick: bool) -> float:
    """Return samples per second, after some batches to warm up."""
    seconds = 3.0 if quick else 10.0
    seen, start = 0, 0.0
    for number, batch in enumerate(batches()):
        if number == 4:
            seen, start = 0, time.perf_counter()
        seen += len(batch["label"])
        if number > 4 and time.perf_counter() - start >= seconds:
            break
    return seen / (time.perf_counter() - start)
