"""An epoch's samples cut into steps, and each step into one batch for each rank.

A step holds `batch_size * world_size` samples, whatever the number of ranks they are shared among. Not here: the
order of the samples (`orders`).
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from deepseek.errors import ConfigError, DataError

Uneven = Literal["short", "pad", "drop"]


class Steps:
    """The places in an epoch's order that this rank's batches hold. Every rank has the same number of batches.

    The samples left over after the last full step are left out with `drop_last`. Otherwise they make a shorter step:

    - "short": each sample once; batches differ by one sample between ranks. Fewer samples than ranks join the step
      before, whose batches are then one larger on some ranks.
    - "pad": as many on every rank; up to `world_size - 1` samples from the epoch's start come a second time.
    - "drop": as many on every rank; up to `world_size - 1` samples stay out.

    Raises ConfigError for a wrong argument, DataError when an epoch has no step.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        uneven: Uneven = "short",
    ) -> None:
        if batch_size < 1:
            raise ConfigError("batch_size is too small", found=batch_size, wanted="at least 1")
        if not 0 <= rank < world_size:
            raise ConfigError(
                "rank is out of range", found=f"rank {rank} of {world_size}", wanted="0 <= rank < world_size"
            )
        if uneven not in get_args(Uneven):
            raise ConfigError("unknown uneven policy", found=repr(uneven), wanted="'short', 'pad' or 'drop'")
        self.count = count
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.uneven: Uneven = uneven
        self.together = batch_size * world_size
        self._full, self._left = divmod(count, self.together)
        if drop_last:
            self._left = 0
        self._joined = uneven == "short" and 0 < self._left < world_size
        has_last = self._left >= world_size or (self._left > 0 and uneven == "pad")
        self._length = self._full + has_last
        if self._length == 0:
            raise DataError(
                "the data does not fill one batch",
                found=f"{count} samples",
                wanted=f"at least {self.together if drop_last else world_size} ({world_size} ranks x batch_size)",
                fix="lower batch_size, or add data",
            )

    def __len__(self) -> int:
        """Return the batches of an epoch, the same for every epoch and rank."""
        return self._length

    def places(self, step: int) -> NDArray[np.int64]:
        """Return this rank's places of a step, (samples,) int64 from 0 to `count` - 1. Raises IndexError."""
        if not 0 <= step < self._length:
            raise IndexError(f"no batch {step}; wanted 0 to {self._length - 1}")
        first = step * self.together
        if step < self._full:
            begin = first + self.rank * self.batch_size
            places = np.arange(begin, begin + self.batch_size)
            if self._joined and step == self._full - 1 and self.rank < self._left:
                return np.append(places, self._full * self.together + self.rank)
            return places
        share, extra = divmod(self._left, self.world_size)
        if self.uneven == "pad":
            share += extra > 0
        if self.uneven != "short":
            extra = 0
        begin = first + self.rank * share + min(self.rank, extra)
        return np.arange(begin, begin + share + (self.rank < extra)) % self.count
