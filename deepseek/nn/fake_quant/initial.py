"""The steps that learning begins with. Not here: the ranges of activations, which are those of calibration.

Sources: `lsq`, Esser et al. 2020, arXiv:1902.08153, section 2.1; `mse`, the least squared error over shares of the
largest weight, as in Bhalgat et al. 2020 (LSQ+), arXiv:2004.09576, section 3.2.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

StepInit = Literal["mse", "lsq"]

TINY = 1e-30
_SHARES = torch.linspace(1.0, 0.3, 29).tolist()


def highest_level(bits: int) -> int:
    """Return the largest whole number of a weight: levels are symmetric, -127..127 of 8 bits and -7..7 of 4."""
    return int(2 ** (bits - 1)) - 1


def initial_steps(weight: Tensor, bits: int, how: StepInit = "mse") -> Tensor:
    """Return a float32 step `(rows,)` for each index of the first dimension of a float weight of any shape.

    `lsq` is twice the mean size over the root of the highest level: the paper's, wide, made for long training. `mse`
    is the step with the least squared error, the better start where training is short. A row of zeros, which may yet
    learn, begins with the middle one of the other rows' steps, or with that of common initial weights.
    """
    rows, highest = weight.detach().float().flatten(1), highest_level(bits)
    if how == "lsq":
        return _without_zeros(2 * rows.abs().mean(dim=1) / math.sqrt(highest), rows.shape[1], highest)
    largest = rows.abs().amax(dim=1).clamp_min(TINY) / highest
    best, least = largest, torch.full_like(largest, torch.inf)
    for share in _SHARES:
        step = largest * share
        error = rows / step[:, None]
        error.sub_(error.round().clamp_(-highest, highest)).mul_(step[:, None]).square_()
        cost = error.sum(dim=1)
        best, least = torch.where(cost < least, step, best), torch.minimum(cost, least)
    return _without_zeros(best, rows.shape[1], highest)


def _without_zeros(steps: Tensor, columns: int, highest: int) -> Tensor:
    """Replace steps too small for any weight to grow by."""
    large = steps > 2 * TINY
    usual = steps[large].median() if bool(large.any()) else steps.new_tensor(1 / (highest * math.sqrt(columns)))
    return torch.where(large, steps, usual)
