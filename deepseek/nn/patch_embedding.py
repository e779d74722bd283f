"""Images and volumes as grids of patch vectors, and the positions of such grids.

Not here: what a model adds to the grid (a class token, the position weights themselves).
Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", arXiv:2010.11929, sections 3.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}


def per_axis(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """Return one size for each axis: a single number stands for all of them."""
    return (value,) * axes if isinstance(value, int) else tuple(value)


class PatchEmbedding(nn.Module):
    """Cuts an image (two patch sizes) or a volume (three) into patches and maps each to a vector.

    What is left over at the far edges is dropped; with `pad`, zeros fill it up to a whole patch.
    """

    def __init__(self, num_channels: int, d_model: int, patch_size: Sequence[int], *, pad: bool = False) -> None:
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.pad = pad
        convolution: Any = _CONVOLUTION[len(self.patch_size)]
        self.projection = convolution(num_channels, d_model, kernel_size=self.patch_size, stride=self.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (batch, *grid, d_model) for `pixels` (batch, num_channels, *sizes)."""
        if self.pad:
            sizes = pixels.shape[2:]
            wholes = [(size + patch - 1) // patch * patch for size, patch in zip(sizes, self.patch_size, strict=True)]
            # compiled for all sizes there is one way, with or without pixels left over
            if torch.compiler.is_compiling() or tuple(wholes) != tuple(sizes):
                missing = [whole - size for whole, size in zip(wholes, sizes, strict=True)]
                pixels = F.pad(pixels, [edge for amount in reversed(missing) for edge in (0, amount)])
        patches: Tensor = self.projection(pixels)
        return patches.movedim(1, -1)


def patches_to_pixels(patches: Tensor, grid: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    """Return the image (batch, num_channels, *sizes) made of `patches` (batch, cells, patch values).

    The values of a patch run over its pixels row by row, channels last. The inverse of cutting into patches.
    """
    axes = len(grid)
    x = patches.reshape(patches.shape[0], *grid, *patch_size, -1)
    order = [0, 2 * axes + 1]
    for axis in range(axes):
        order += [1 + axis, 1 + axes + axis]
    sizes = [cells * patch for cells, patch in zip(grid, patch_size, strict=True)]
    return x.permute(order).reshape(patches.shape[0], -1, *sizes)


def resize_positions(positions: Tensor, grid: Sequence[int], new_grid: Sequence[int]) -> Tensor:
    """Return the position vectors (1, new cells, d_model) of `new_grid` from those of `grid` (1, cells, d_model).

    Between cells they are interpolated: bicubic in two dimensions, trilinear in three.
    """
    if tuple(grid) == tuple(new_grid):
        return positions
    volume = positions.float().reshape(1, *grid, -1).movedim(-1, 1)
    mode = "bicubic" if len(grid) == 2 else "trilinear"
    resized = F.interpolate(volume, size=list(new_grid), mode=mode, align_corners=False)
    return resized.flatten(2).transpose(1, 2).to(positions.dtype)


def sincos_positions(grid: Sequence[int], d_model: int, device: torch.device) -> Tensor:
    """Return fixed position vectors (1, cells, d_model) in float32 for a grid of two dimensions.

    The first half of a vector encodes the column, the second half the row; a half is sines, then cosines, of
    frequencies 1 to 1/10000. `d_model` must be a multiple of 4.
    Source: the sine-cosine positions of DiT, arXiv:2212.09748, section 3.2, and the order of its public code.
    """
    height, width = grid
    quarter = d_model // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float32, device=device) / quarter)
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=device),
        torch.arange(width, dtype=torch.float32, device=device),
        indexing="ij",
    )
    angles = [place.reshape(-1, 1) * frequencies for place in (columns, rows)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)[None]
