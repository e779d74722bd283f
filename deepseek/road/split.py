"""Which samples are held back for validation: a function of (seed, number of samples, share, groups) alone.

The same on every machine, in every process and after a resume. Not here: text documents (`deepseek.data.packing`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepseek.data.packing import keyed_order
from deepseek.errors import ConfigError, DataError

_SPLIT = 7  # what the random order is for; others draw with other numbers

Rows = NDArray[np.int64]


class Split(NamedTuple):
    """Rows to train on and rows held back, both sorted; `groups` are the held-back values of the field split by."""

    train: Rows
    held_out: Rows
    groups: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """A checksum of the held-back rows."""
        return hashlib.sha256(self.held_out.astype("<i8").tobytes()).hexdigest()[:16]


def split_rows(count: int, fraction: float, seed: int, groups: Sequence[str] | None = None) -> Split:
    """Return a split of `count` samples with `fraction` of them held back, at least one where it is above 0.

    With `groups` (one value a sample) whole groups are held back, in random order until the share is reached.
    Raises DataError where one side would be empty, ConfigError for a group that is too large for that.
    """
    if fraction == 0:
        return Split(np.arange(count), np.arange(0))
    if count < 2:
        raise DataError("too few samples to hold some back", found=count, wanted="at least 2", fix="name data.val")
    wanted = min(max(1, round(count * fraction)), count - 1)
    if groups is None:
        order = keyed_order(count, seed, 0, _SPLIT)
        return Split(np.sort(order[wanted:]), np.sort(order[:wanted]))
    names, number = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)
    if len(names) < 2:
        raise ConfigError(
            "all samples share the value that data.split_by names",
            found=repr(str(names[0])),
            wanted="at least 2 values",
        )
    sizes, chosen, held = np.bincount(number), [], 0
    for group in keyed_order(len(names), seed, 0, _SPLIT)[:-1].tolist():
        chosen.append(group)
        held += int(sizes[group])
        if held >= wanted:
            break
    mask = np.isin(number, chosen)
    return Split(np.flatnonzero(~mask), np.flatnonzero(mask), tuple(str(names[group]) for group in sorted(chosen)))
