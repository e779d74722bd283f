"""Convolution subsampling: two strided convolutions turn four feature frames into one frame of the model's width.

Nothing is padded in time: output frame t reads the input frames 4t to 4t + 6 and no others, in a stream as well.
Source: Gulati et al. 2020, "Conformer", arXiv:2005.08100 (after Dong et al. 2018, "Speech-Transformer",
doi:10.1109/ICASSP.2018.8462506).
"""

from __future__ import annotations

from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 4
"""Input frames from one output frame to the next."""
REACH = 7
"""Input frames that one output frame reads."""

Length = TypeVar("Length", int, Tensor)


def subsampled_length(frames: Length) -> Length:
    """Return how many output frames come of `frames` input frames, at least REACH."""
    return ((frames - 1) // 2 - 1) // 2


class ConvSubsampling(nn.Module):
    """(batch, frames, num_mels) to (batch, subsampled_length(frames), d_model)."""

    def __init__(self, num_mels: int, d_model: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, d_model, 3, stride=2)
        self.second = nn.Conv2d(d_model, d_model, 3, stride=2)
        self.out = nn.Linear(d_model * subsampled_length(num_mels), d_model)

    def forward(self, features: Tensor) -> Tensor:
        """Return (batch, time, d_model)."""
        x = F.relu(self.second(F.relu(self.first(features[:, None]))))  # (batch, d_model, time, mels)
        out: Tensor = self.out(x.transpose(1, 2).flatten(2))
        return out
