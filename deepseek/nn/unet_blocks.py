"""Blocks of U-shaped networks, in two or three dimensions: the double convolution and the step up.

Maps are (batch, channels, *space), with one or two more dimensions than a sequence.
Source: Ronneberger et al. 2015, arXiv:1505.04597; in three dimensions Cicek et al. 2016, arXiv:1606.06650.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["batch", "instance", "none"]
"""What follows a convolution. `instance` looks at each image alone, which small batches of large volumes want."""

_CONVOLUTIONS: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_STEPS_UP: dict[int, type[nn.ConvTranspose2d | nn.ConvTranspose3d]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_POOLS: dict[int, type[nn.MaxPool2d | nn.MaxPool3d]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_BATCH_NORMS: dict[int, type[nn.BatchNorm2d | nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def convolution(dims: int, inputs: int, outputs: int, kernel: int, bias: bool = True) -> nn.Conv2d | nn.Conv3d:
    """Return a convolution in `dims` dimensions that keeps the size."""
    return _CONVOLUTIONS[dims](inputs, outputs, kernel, padding=kernel // 2, bias=bias)


def step_up(dims: int, inputs: int, outputs: int) -> nn.ConvTranspose2d | nn.ConvTranspose3d:
    """Return a transposed convolution in `dims` dimensions that doubles the size."""
    return _STEPS_UP[dims](inputs, outputs, 2, stride=2)


def step_down(dims: int) -> nn.MaxPool2d | nn.MaxPool3d:
    """Return a max pooling in `dims` dimensions that halves the size."""
    return _POOLS[dims](2)


def _norm(kind: Norm, dims: int, channels: int) -> nn.Module:
    if kind == "batch":
        return _BATCH_NORMS[dims](channels)
    # one group a channel is instance norm, and one layer serves images and volumes
    return nn.GroupNorm(channels, channels) if kind == "instance" else nn.Identity()


class DoubleConv(nn.Module):
    """Twice: 3x3 (3x3x3) convolution, norm, ReLU. Only without a norm do the convolutions have a bias."""

    def __init__(self, dims: int, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        bias = norm == "none"
        self.conv1 = convolution(dims, inputs, outputs, 3, bias)
        self.norm1 = _norm(norm, dims, outputs)
        self.conv2 = convolution(dims, outputs, outputs, 3, bias)
        self.norm2 = _norm(norm, dims, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, outputs, *space)."""
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)))


def pad_to_multiple(x: Tensor, multiple: int, minimum: int = 1) -> Tensor:
    """Return `x` with its edge repeated at the end of each space dimension, up to a multiple of `multiple`.

    Sides are at least `minimum` afterwards. Cut the result of a network back with `cut_to`.
    """
    missing = [max(math.ceil(size / multiple) * multiple, minimum) - size for size in x.shape[2:]]
    if not any(missing):
        return x
    pads = [pad for amount in reversed(missing) for pad in (0, amount)]
    return F.pad(x, pads, mode="replicate")


def cut_to(x: Tensor, space: Sequence[int]) -> Tensor:
    """Return the beginning of `x` (batch, channels, *space), as large as `space` in each space dimension."""
    for dim, size in enumerate(space, start=2):
        if x.shape[dim] != size:
            x = x.narrow(dim, 0, size)
    return x
