"""Stochastic rounding to bfloat16: up or down by chance, in proportion, so that the mean is the number itself.

A weight in bfloat16 has 8 bits; an update below half of the last bit vanishes with nearest rounding, step after step.
Rounded by chance it arrives once in a while, and on average in full.
Sources: Gupta et al. 2015, arXiv:1502.02551; for bfloat16 weights Zamirai et al. 2020, arXiv:2010.06192.
"""

from __future__ import annotations

import torch
from torch import Tensor

_POOL = 1 << 18


class RoundingNoise:
    """The random bits of one optimizer step, from torch's own random numbers.

    On a CPU making them would cost more than the step, so that a pool of 2**18 is made once and read from places drawn
    anew for each piece: every number is uniform, and numbers a multiple of a piece apart may be the same.
    """

    def __init__(self) -> None:
        self._pool: Tensor | None = None

    def draw(self, count: int, device: torch.device) -> Tensor:
        """Return (count,) int32 of 32 random bits each; to be read only."""
        if device.type != "cpu" or count > _POOL // 2:
            return torch.empty(count, dtype=torch.int32, device=device).random_(-(2**31), 2**31)
        if self._pool is None:
            self._pool = torch.empty(_POOL // 2, dtype=torch.int64).random_(-(2**63), None).view(torch.int32)
        start = int(torch.randint(_POOL - count + 1, ()))
        return self._pool[start : start + count]


def round_stochastically(values: Tensor, noise: Tensor, out: Tensor) -> None:
    """Write `values`, (n,) float32, into `out`, (n,) bfloat16, rounded up or down by chance.

    `noise`: (n,) int32, of which the lower 16 bits are used: they are added below the last bit kept, which then may
    rise. Infinities and NaN stay what they are; a number beyond the largest bfloat16 may become infinite.
    """
    bits = noise.bitwise_and(0xFFFF).add_(values.view(torch.int32)).bitwise_and_(-65536)
    out.copy_(bits.view(torch.float32))
