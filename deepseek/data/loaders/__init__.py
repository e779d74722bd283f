"""Loaders: data sets on disk to batches, shared among ranks and made by worker processes; HDF5 files."""

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.data.loaders.chunk_sampler import ChunkSampler
    from deepseek.data.loaders.distributed_dataset import DistributedDataset
    from deepseek.data.loaders.h5_dataset import H5Dataset

__all__ = ["ChunkSampler", "DistributedDataset", "H5Dataset"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ChunkSampler": "deepseek.data.loaders.chunk_sampler:ChunkSampler",
        "DistributedDataset": "deepseek.data.loaders.distributed_dataset:DistributedDataset",
        "H5Dataset": "deepseek.data.loaders.h5_dataset:H5Dataset",
    },
)
