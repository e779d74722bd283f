"""The order of the samples of an epoch: permutations that follow from (seed, epoch) alone.

Shuffled, by length, or by block of a file. Not here: how an order is cut into batches and shared (`steps`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from deepseek.data.packing import keyed_order

_SAMPLES, _STEPS, _BLOCKS, _INSIDE = 3, 4, 5, 6


class EpochOrders:
    """The orders that `make(epoch)` gives, two of them kept: a loader that reads ahead is in both for a while."""

    def __init__(self, make: Callable[[int], NDArray[np.int64]]) -> None:
        self._make = make
        self._kept: dict[int, NDArray[np.int64]] = {}

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        order = self._kept.get(epoch)
        if order is None:
            order = self._make(epoch)
            last = dict(list(self._kept.items())[-1:])
            self._kept = {**last, epoch: order}
        return order


def shuffled(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return a permutation of 0 to count - 1."""
    return keyed_order(count, seed, epoch, _SAMPLES)


def by_length(
    order: NDArray[np.int64], sizes: NDArray[np.int64], step: int, pool: int, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Return `order` rearranged so that every `step` samples are of like length, to be padded less.

    Of each `pool` steps in a row the samples are sorted by size and cut into steps anew; the steps then come in
    shuffled order. What does not fill a step stays at the end as it was, so it is no special length that is left over.
    """
    whole = len(order) // step
    body, tail = order[: whole * step], order[whole * step :]
    pools = np.arange(len(body)) // (pool * step)
    body = body[np.lexsort((sizes[body], pools))].reshape(whole, step)
    return np.concatenate([body[keyed_order(whole, seed, epoch, _STEPS)].reshape(-1), tail])


def by_block(starts: NDArray[np.int64], window: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return a shuffle that stays near blocks: blocks in random order, then samples within each `window` blocks.

    `starts` (blocks + 1,) holds where each block begins, and the number of samples at the end. A reader that keeps
    `window` blocks in memory reads each of them once an epoch.
    """
    blocks = keyed_order(len(starts) - 1, seed, epoch, _BLOCKS)
    lengths = np.diff(starts)[blocks]
    ends = np.cumsum(lengths)
    count = int(starts[-1])
    near = np.repeat(starts[:-1][blocks] - (ends - lengths), lengths) + np.arange(count)
    windows = np.repeat(np.arange(len(blocks)) // window, lengths)
    return near[np.lexsort((keyed_order(count, seed, epoch, _INSIDE), windows))]
