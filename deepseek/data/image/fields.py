"""Smooth random displacement fields, the random part of elastic deformation.

Simard et al. 2003 (https://doi.org/10.1109/ICDAR.2003.1227801): uniform noise from -1 to 1 for each pixel and axis,
blurred by a Gaussian of `sigma` pixels, times `alpha`. Such a field has no detail finer than sigma, so it is drawn as
Gaussians on a grid of spacing h <= sigma instead: its variance and autocorrelation are those of the definition to
within 2 exp(-(pi sigma / h)^2) < 2e-4 for each axis, at a cost that does not grow with sigma. Not here: applying
a field to an image (`warp`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from deepseek.errors import ConfigError

_REACH = 4.0
"""Where the Gaussian is cut, in sigmas: beyond it lie 6e-5 of its weight."""

_STRETCH = 64
"""Pixels that one small matrix product makes: enough to keep the processor busy, few enough to skip most zeros."""


def random_field(shape: Sequence[int], alpha: float, sigma: float, rng: np.random.Generator) -> Tensor:
    """Return a random displacement field, float32 (dims, *shape), in pixels, axes in the order of `shape`.

    The field is alpha * gaussian_filter(uniform(-1, 1), sigma), with noise beyond the edges as well, so that edges move
    like the middle. Each displacement has mean 0 and, for sigma >= 1, standard deviation
    alpha / sqrt(3) / (2 sqrt(pi) sigma) ** (dims / 2): in 2D alpha 30 and sigma 4 move pixels by 1.2 pixels. Neighbours
    at distance r correlate by exp(-r^2 / (4 sigma^2)).

    `shape` is (height, width) or (depth, height, width). Raises ConfigError for another, or alpha or sigma below 0.
    """
    return torch.cat(list(field_bands(shape, alpha, sigma, rng)), dim=1)


def field_bands(shape: Sequence[int], alpha: float, sigma: float, rng: np.random.Generator) -> Iterator[Tensor]:
    """Yield the field of `random_field` in bands (dims, rows, ...) along its first axis, the same numbers.

    So a field never stands in memory as a whole where it is used up band by band. Raises ConfigError likewise.
    """
    _check(shape, alpha, sigma)
    spacing = max(1, math.floor(sigma))
    kernel = _kernel(float(sigma), spacing)
    group = kernel.shape[0] // spacing
    blocks = [-(-side // len(kernel)) for side in shape]
    coarse = [len(shape), *((count - 1) * group + kernel.shape[1] for count in blocks)]
    if spacing == 1:
        noise = rng.random(coarse, dtype=np.float32) * np.float32(2) - np.float32(1)
    else:  # a coarse point stands for spacing ** dims noises, whose sum is all but normal
        noise = rng.standard_normal(coarse, dtype=np.float32) * np.float32(math.sqrt(1 / 3))
    field = torch.from_numpy(noise).mul_(alpha)
    for axis in range(len(shape), 1, -1):
        field = torch.cat(list(_refined(field, axis, kernel, group, shape[axis - 1])), dim=axis)
    yield from _refined(field, 1, kernel, group, shape[0])


def _refined(coarse: Tensor, axis: int, kernel: Tensor, group: int, side: int) -> Iterator[Tensor]:
    """Yield the values of `side` pixels along `axis` from the coarse points along it, some pixels at a time.

    One matrix, `kernel` (pixels, points) of `_kernel`, takes a stretch of coarse points to its pixels. The next stretch
    begins `group` points later.
    """
    pixels, points = kernel.shape
    last = axis == coarse.ndim - 1
    lines = coarse if last else coarse.flatten(axis + 1)
    for place in range(-(-side // pixels)):
        stretch = lines.narrow(axis, place * group, points)
        count = min(pixels, side - place * pixels)
        found = (stretch @ kernel.T if last else kernel @ stretch).narrow(axis, 0, count)
        yield found.reshape(*coarse.shape[:axis], count, *coarse.shape[axis + 1 :])


@functools.lru_cache(maxsize=64)
def _kernel(sigma: float, spacing: int) -> Tensor:
    """Return the weights (pixels, points) of coarse points in the pixels of one stretch, about _STRETCH of them.

    A pixel's weights are the Gaussian's values around it, with sum 1, over sqrt(spacing): a coarse point stands for
    `spacing` noises, and has sqrt(spacing) times their deviation.
    """
    group = -(-_STRETCH // spacing)
    reach = math.ceil(_REACH * sigma / spacing + 0.5)
    pixel = torch.arange(group * spacing, dtype=torch.float64) - (spacing - 1) / 2
    point = torch.arange(-reach, group + reach, dtype=torch.float64) * spacing
    distance = (pixel[:, None] - point) / max(sigma, 1e-3)
    weights = torch.exp(-0.5 * distance**2).where(distance.abs() <= _REACH + 0.5 * spacing / max(sigma, 1e-3), 0.0)
    return (weights / weights.sum(dim=1, keepdim=True) / math.sqrt(spacing)).float()


def _check(shape: Sequence[int], alpha: float, sigma: float) -> None:
    if len(shape) not in (2, 3) or min(shape) < 1:
        wanted = "(height, width) or (depth, height, width), each at least 1"
        raise ConfigError("no shape of a displacement field", found=str(tuple(shape)), wanted=wanted)
    for name, value in (("alpha", alpha), ("sigma", sigma)):
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name} is out of range", found=value, wanted="a number of pixels, 0 or more")
