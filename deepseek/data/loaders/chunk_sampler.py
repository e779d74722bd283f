"""A sampler for `torch.utils.data.DataLoader` that shuffles an `H5Dataset` and still reads each chunk once."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler

from deepseek.data.loaders.h5_dataset import H5Dataset
from deepseek.data.loaders.orders import by_block
from deepseek.errors import ConfigError


class ChunkSampler(Sampler[int]):
    """Every sample once: the chunks in random order, the samples shuffled among `window` chunks at a time.

    The order follows from (seed, epoch); each pass is another epoch. The larger the window, the nearer to a full
    shuffle, and the more has to fit into `cache_bytes`. Raises ConfigError for a window below 1.
    """

    def __init__(self, dataset: H5Dataset, *, window: int = 16, seed: int = 0, epoch: int = 0) -> None:
        if window < 1:
            raise ConfigError("window is too small", found=window, wanted="at least 1 chunk")
        self.dataset = dataset
        self.window = window
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        order = by_block(self.dataset.block_starts(), self.window, self.seed, self.epoch)
        self.epoch += 1
        return iter(order.tolist())
