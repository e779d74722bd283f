"""Distances as features: a row of Gaussians, a smooth cutoff, and the activation that goes with them.

Source: Schuett et al. 2017, "SchNet: A continuous-filter convolutional neural network for modeling quantum
interactions", arXiv:1706.08566; the cosine cutoff from Behler 2011, doi:10.1063/1.3553717.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GaussianBasis(nn.Module):
    """`num_radial` Gaussians exp(-gamma (distance - centre)^2), their centres evenly spread from 0 to `cutoff`.

    `gamma` None makes neighbours overlap at one deviation: 1 / (2 spacing^2). No weights.
    """

    def __init__(self, cutoff: float, num_radial: int, gamma: float | None = None) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.num_radial = num_radial
        self.gamma = gamma if gamma is not None else 0.5 * ((num_radial - 1) / cutoff) ** 2

    def forward(self, distances: Tensor) -> Tensor:
        """Return (..., num_radial) for `distances` (...), in their dtype."""
        # made here: a buffer would have to survive casts and loading through the meta device
        centres = torch.linspace(0, self.cutoff, self.num_radial, device=distances.device, dtype=distances.dtype)
        return torch.exp(-self.gamma * (distances[..., None] - centres).square())


def cosine_cutoff(distances: Tensor, cutoff: float) -> Tensor:
    """Return a factor of distances' shape: 1 at 0, falling smoothly, with its slope, to 0 at `cutoff` and beyond."""
    wave = 0.5 * (torch.cos(distances * (math.pi / cutoff)) + 1)
    return torch.where(distances < cutoff, wave, 0)


def shifted_softplus(x: Tensor) -> Tensor:
    """Return ln(0.5 e^x + 0.5): a softplus that is zero at zero, and smooth, so that forces are continuous."""
    return F.softplus(x) - math.log(2)
