"""Random numbers for a stage that depend on (seed, epoch, sample, stage) alone, on every machine.

Philox (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405) is a counter-based generator: seed is its key, and
epoch, sample and stage are three of the four words of its counter, so no two streams overlap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

_SAMPLES, _BATCHES = 0, 1


def sample_rng(seed: int, epoch: int, index: int, step: int) -> np.random.Generator:
    """Return the generator of step `step` for sample `index`. All numbers are from 0 to 2**64 - 1."""
    return _generator(seed, _SAMPLES, epoch, index, step)


def batch_rng(seed: int, epoch: int, indices: Sequence[int], step: int) -> np.random.Generator:
    """Return the generator of step `step` for the batch made of the samples `indices`, in this order."""
    digest = hashlib.blake2b(np.array(indices, dtype=np.int64).tobytes(), digest_size=8).digest()
    return _generator(seed, _BATCHES, epoch, int.from_bytes(digest, "little"), step)


def _generator(seed: int, purpose: int, epoch: int, index: int, step: int) -> np.random.Generator:
    counter = np.array([0, step, index, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=np.array([seed, purpose], dtype=np.uint64)))
