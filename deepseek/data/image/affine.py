"""Images turned, moved, scaled and sheared, with their masks and boxes.

A map is a 2 x 3 matrix on points (x, y) in pixels, pixel i covering [i, i + 1]; it says where points of the image go.
Each new pixel looks up the place its centre comes from, bilinearly between the four pixels around (masks: the pixel it
falls in). Shrinking below half the size is not antialiased: use Resize for that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.data.image.boxes import Matrix, boxes_cut
from deepseek.data.image.settings import (
    check_image,
    check_levels,
    check_probability,
    check_range,
    fill_value,
    sample_image,
)
from deepseek.data.pipeline.stage import Domain, Sample, SampleStage
from deepseek.errors import ConfigError

_BAND = 64
"""Rows that are worth a thread of their own."""

_LINE = 16
"""Values of float32 in a line of the cache."""


def affine_matrix(
    height: int,
    width: int,
    degrees: float = 0.0,
    translate: tuple[float, float] = (0.0, 0.0),
    scale: float = 1.0,
    shear: float = 0.0,
) -> Matrix:
    """Return the map that shears by `shear` degrees along x, scales and turns about the middle, then moves.

    Positive `degrees` turn counter-clockwise as seen; `translate` is (x, y) in pixels, right and down.
    """
    angle = math.radians(degrees)
    cos, sin, slope = scale * math.cos(angle), scale * math.sin(angle), math.tan(math.radians(shear))
    along = ((cos, sin + cos * slope), (-sin, cos - sin * slope))  # y points down
    x, y = width / 2, height / 2
    (a, b), (c, d) = along
    return ((a, b, x + translate[0] - a * x - b * y), (c, d, y + translate[1] - c * x - d * y))


def invert(matrix: Matrix) -> Matrix:
    """Return the map back. Raises ConfigError for a matrix that has none, or is not finite."""
    (a, b, x), (c, d, y) = matrix
    determinant = a * d - b * c
    if not all(math.isfinite(value) for row in matrix for value in row) or abs(determinant) < 1e-12:
        raise ConfigError("this map can't be undone", found=repr(matrix), wanted="finite numbers that span an area")
    p, q, r, s = d / determinant, -b / determinant, -c / determinant, a / determinant
    return ((p, q, -p * x - q * y), (r, s, -r * x - s * y))


def warp_affine(image: Tensor, matrix: Matrix | Sequence[Matrix], fill: float = 0.0) -> Tensor:
    """Return the images (..., channels, height, width) after the map, bilinear, at the size they had.

    One matrix serves all; a list gives each of a batch (batch, channels, height, width) its own. `fill` is the level
    outside, 0 to 255 (float images take fill / 255), blended in at the image's edge. uint8 is rounded to nearest.
    Raises ConfigError for a matrix without inverse or another number of them, DataError for a tensor that is no image.
    """
    check_image(image)
    height, width = image.shape[-2:]
    batch = image.reshape(-1, *image.shape[-3:])
    matrices = _one_or_each(matrix, len(batch))
    back = torch.tensor([invert(one) for one in matrices], dtype=torch.float64)
    # grid_sample counts -1 to 1 from edge to edge
    back *= torch.tensor([[2 / width], [2 / height]], dtype=torch.float64)
    back[:, :, 2] -= 1
    level = fill_value(fill, image)
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    values = _spread_rows(batch, dtype)
    if level != 0:
        values -= level
    points = _source_points(back, height, width).to(image.device, dtype)
    warped = _sample(values, points)
    if level != 0:
        warped += level
    if image.dtype == torch.uint8:
        # nothing is below 0 or above 255; by way of int16 it is three times as fast
        warped = warped.add_(0.5).to(torch.int16)
    return warped.to(image.dtype).reshape(image.shape)


def warp_affine_nearest(values: Tensor, matrix: Matrix, fill: int = 0) -> Tensor:
    """Return the values (..., height, width) of any dtype, such as masks, after the map; `fill` outside.

    Each pixel takes the value of the one that its centre comes from. Raises ConfigError as `warp_affine` does.
    """
    height, width = values.shape[-2:]
    points = _source_points(torch.tensor([invert(matrix)], dtype=torch.float64), height, width)
    x, y = points[0].to(values.device).floor_().to(torch.int32)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    place = y.mul_(width).add_(x).mul_(inside).flatten()
    taken = values.flatten(-2).index_select(-1, place).reshape(values.shape)
    return taken.masked_fill_(~inside, fill)


def _one_or_each(matrix: Matrix | Sequence[Matrix], number: int) -> Sequence[Matrix]:
    each: Any = matrix
    if not isinstance(each[0][0], Sequence):
        return (each,)
    if len(each) != number:
        raise ConfigError("not one matrix for each image", found=f"{len(each)} for {number}", wanted="one, or as many")
    found: Sequence[Matrix] = each
    return found


def _source_points(back: Tensor, height: int, width: int) -> Tensor:
    """Return where each pixel's centre comes from, (maps, 2, height, width) float32, x plane first."""
    column = torch.arange(width, dtype=torch.float64) + 0.5
    row = torch.arange(height, dtype=torch.float64) + 0.5
    along = (back[:, :, :1] * column).float()  # (maps, 2, width)
    down = (back[:, :, 1:2] * row + back[:, :, 2:]).float()  # (maps, 2, height)
    return down[..., :, None] + along[..., None, :]


def _spread_rows(batch: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a float copy whose rows begin an odd number of cache lines apart.

    Rows a power of two apart share the same few places in the cache: looking up turned rows is then three times slower.
    """
    width = batch.shape[-1]
    stride = _LINE * (-(-width // _LINE) | 1)
    return batch.new_empty((*batch.shape[:-1], stride), dtype=dtype)[..., :width].copy_(batch)


def _sample(values: Tensor, points: Tensor) -> Tensor:
    """Return values (batch, channels, h, w) at points (batch or 1, 2, height, width), zero outside."""
    batch, height = len(values), points.shape[2]
    bands = torch.get_num_threads() if batch == 1 and values.device.type == "cpu" else 1
    if bands > 1 and height % bands == 0 and height // bands >= _BAND:
        # grid_sample works on the images of a batch in parallel: one image becomes a batch of its bands
        split = points.reshape(2, bands, height // bands, -1).permute(1, 2, 3, 0)
        sampled = F.grid_sample(values.expand(bands, -1, -1, -1), split, align_corners=False)
        return sampled.transpose(0, 1).reshape(1, values.shape[1], height, -1)
    grid = points.permute(0, 2, 3, 1).expand(batch, -1, -1, -1)
    return F.grid_sample(values, grid, align_corners=False)


@dataclass(frozen=True)
class RandomAffine(SampleStage):
    """Turns, moves, scales and shears the image about its middle, with probability `p`.

    Drawn uniformly: the angle within +-`degrees`, the move within +-`translate` (shares of width and height), the scale
    in `scale` (log-uniform), the shear along x within +-`shear` degrees. What comes from outside is `fill`, 0 to 255
    (float images take fill / 255), and class `mask_fill` in the mask. A box becomes the upright hull of its moved
    corners, cut at the edges; one with less than `min_visible` of its area left is dropped with its class.
    """

    takes: ClassVar[Domain] = Domain.IMAGE
    gives: ClassVar[Domain] = Domain.IMAGE
    augments: ClassVar[bool] = True

    degrees: float = 10.0
    translate: tuple[float, float] = (0.1, 0.1)
    scale: tuple[float, float] = (0.9, 1.1)
    shear: float = 0.0
    p: float = 1.0
    fill: float = 0.0
    mask_fill: int = 0
    min_visible: float = 0.1

    def __post_init__(self) -> None:
        check_range("degrees", (0.0, self.degrees), 0.0, 360.0)
        for share in self.translate:
            check_range("translate", (0.0, share), 0.0, 1.0)
        if len(self.translate) != 2:
            raise ConfigError(
                "translate is no pair", found=repr(self.translate), wanted="(of the width, of the height)"
            )
        check_range("scale", self.scale, 0.01, 100.0)
        check_range("shear", (0.0, self.shear), 0.0, 80.0)
        check_probability("p", self.p)
        check_levels(self.fill, self.mask_fill)
        check_probability("min_visible", self.min_visible)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the warped sample, or the sample as it is. Raises DataError for an image of another form."""
        image = sample_image(sample)
        if rng.random() >= self.p:
            return dict(sample)
        matrix = self.draw(image.shape[1], image.shape[2], rng)
        mask: dict[str, Any] = {}
        if sample.get("mask") is not None:
            mask = {"mask": warp_affine_nearest(sample["mask"], matrix, self.mask_fill)}
        boxes = boxes_cut(sample, matrix, (image.shape[1], image.shape[2]), self.min_visible)
        return {**sample, "image": warp_affine(image, matrix, self.fill), **mask, **boxes}

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Matrix:
        """Return a random map for an image of these sides."""
        degrees = rng.uniform(-self.degrees, self.degrees)
        x, y = (rng.uniform(-share, share) for share in self.translate)
        scale = math.exp(rng.uniform(math.log(self.scale[0]), math.log(self.scale[1])))
        shear = rng.uniform(-self.shear, self.shear)
        return affine_matrix(height, width, degrees, (x * width, y * height), scale, shear)
