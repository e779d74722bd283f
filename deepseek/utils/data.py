"""`torch.utils.data` under our name, with what is ours beside it: `H5Dataset`, `ChunkSampler`, `DistributedDataset`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from torch.utils.data import *  # noqa: F403

    from deepseek.data.loaders.chunk_sampler import ChunkSampler as ChunkSampler
    from deepseek.data.loaders.distributed_dataset import DistributedDataset as DistributedDataset
    from deepseek.data.loaders.h5_dataset import H5Dataset as H5Dataset

__path__: list[str] = []  # a package, so that `from deepseek.utils.data.distributed import ...` is an import path

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ChunkSampler": "deepseek.data.loaders.chunk_sampler:ChunkSampler",
        "DistributedDataset": "deepseek.data.loaders.distributed_dataset:DistributedDataset",
        "H5Dataset": "deepseek.data.loaders.h5_dataset:H5Dataset",
    },
    fallback="torch.utils.data",
)
