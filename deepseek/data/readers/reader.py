"""What a data set on disk looks like to a loader: a number of samples, each read when it is asked for.

Not here: shuffling, sharding and batches (`deepseek.data.loaders`), and changes of a sample (`deepseek.data.pipeline`).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepseek.data.pipeline.stage import Sample


class Reader(Protocol):
    """Samples of a folder or file. It pickles, holds no open handle when it does, and keeps its index in arrays.

    An index in arrays (`deepseek.data.columns`) stays shared between forked workers; Python lists of paths would be
    copied page by page as their reference counts change.
    """

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample:
        """Return sample `index` with its `path`. Raises DataError naming the file for what can't be read."""
        ...

    def sizes(self) -> NDArray[np.int64] | None:
        """Return a measure of each sample's length (bytes, frames, tokens) for batches of like lengths, if known."""
        ...
