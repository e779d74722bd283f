"""Patches of images and volumes: random ones to train on, and overlapping ones that cover a whole volume.

Training takes patches that hold foreground more often than chance would, as segmentation of small organs needs
(Isensee et al. 2021, nnU-Net, https://doi.org/10.1038/s41592-020-01008-z); prediction slides a window over the volume
and joins what a model says of each place (`stitch`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from deepseek.data.image.settings import check_probability, check_size, sample_image, sides_of
from deepseek.data.pipeline.stage import Domain, Sample, SampleStage
from deepseek.errors import ConfigError, DataError

Corner = tuple[int, ...]
"""A patch's first row along each axis."""

Weighting = Literal["uniform", "gaussian"]
"""How much each place of a patch counts: alike, or less towards its edges (deviation an eighth of the side)."""

_GUESSES = 256


def patch_corners(shape: Sequence[int], size: Sequence[int], overlap: float = 0.5) -> list[Corner]:
    """Return the corners of patches of `size` that cover `shape`, neighbours overlapping by at least a share `overlap`.

    The last patch along an axis ends at the edge. Raises ConfigError for an overlap out of [0, 1), DataError where a
    patch is larger than the volume.
    """
    if not 0 <= overlap < 1:
        raise ConfigError("overlap is out of range", found=overlap, wanted="0 or more, below 1")
    _check_fits(shape, size)
    axes = []
    for length, side in zip(shape, size, strict=True):
        step = max(1, math.floor(side * (1 - overlap)))
        count = -(-(length - side) // step) + 1
        axes.append([min(place * step, length - side) for place in range(count)])
    return list(itertools.product(*axes))


def sliding_patches(volume: Tensor, size: Sequence[int], overlap: float = 0.5) -> Iterator[tuple[Corner, Tensor]]:
    """Yield each corner with its patch (..., *size) of a volume (..., *space), as views: nothing is copied.

    Raises ConfigError and DataError like `patch_corners`.
    """
    for corner in patch_corners(volume.shape[-len(size) :], size, overlap):
        yield corner, volume[_window(corner, size)]


def stitch(patches: Iterable[tuple[Corner, Tensor]], shape: Sequence[int], weighting: Weighting = "uniform") -> Tensor:
    """Return (..., *shape) out of patches (..., *size) at their corners; where they overlap, their weighted mean.

    Where overlapping patches agree the result is exactly what they say, for float32 and smaller and for whole numbers
    below 2**53: sums are kept in float64. So patches of `sliding_patches`, unchanged, give the volume back. The dtype
    is that of the patches. One patch at a time is needed, so they may come from a generator.

    Raises DataError for patches that leave a place uncovered, or lie outside `shape`.
    """
    if weighting not in get_args(Weighting):
        raise ConfigError("unknown weighting", found=repr(weighting), wanted="'uniform' or 'gaussian'")
    total: Tensor | None = None
    dtype, weights = torch.float32, torch.empty(0)
    covered = torch.zeros(tuple(shape), dtype=torch.float64)
    for corner, patch in patches:
        size = patch.shape[-len(shape) :]
        if len(corner) != len(shape) or any(not 0 <= c <= n - s for c, n, s in zip(corner, shape, size, strict=True)):
            raise DataError(
                "a patch lies outside the volume", found=f"{tuple(size)} at {corner}", wanted=str(tuple(shape))
            )
        if total is None:
            dtype = patch.dtype
            total = torch.zeros((*patch.shape[: -len(shape)], *shape), dtype=torch.float64)
        if weights.shape != size:
            weights = _weights(size, weighting)
        place = _window(corner, size)
        total[place] += patch.double() * weights
        covered[place[1:]] += weights
    if total is None or not bool(covered.all()):
        found = f"{int((covered == 0).sum()):,} of {covered.numel():,} places without a patch"
        raise DataError("the patches don't cover the volume", found=found, fix="give all patches of patch_corners")
    mean = total / covered
    return (mean if dtype.is_floating_point else mean.round()).to(dtype)


def _weights(size: Sequence[int], weighting: Weighting) -> Tensor:
    weights = torch.ones(tuple(size), dtype=torch.float64)
    if weighting == "gaussian":
        for axis, side in enumerate(size):
            place = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / (side / 8)
            weights *= torch.exp(-0.5 * place**2).reshape(-1, *([1] * (len(size) - 1 - axis)))
    return weights


def _window(corner: Corner, size: Sequence[int]) -> tuple[EllipsisType | slice, ...]:
    """Return the patch's place in a tensor (..., *space)."""
    return (..., *(slice(start, start + side) for start, side in zip(corner, size, strict=True)))


def _check_fits(shape: Sequence[int], size: Sequence[int]) -> None:
    if len(shape) != len(size) or any(not 1 <= side <= length for side, length in zip(size, shape, strict=True)):
        raise DataError(
            "the patch doesn't fit into the image",
            found=f"a patch of {tuple(size)} for {tuple(shape)}",
            wanted="as many sides, none longer than the image's",
            fix="choose a smaller size, or pad the image (torch.nn.functional.pad)",
        )


@dataclass(frozen=True)
class RandomPatch(SampleStage):
    """Cuts a patch of `size` out of image and mask, flat (height, width) or a volume (depth, height, width).

    With probability `foreground` the patch holds a place of the foreground (mask above 0) drawn at random, anywhere in
    the patch that the edges allow; else, and where the mask has no foreground, it lies anywhere. `foreground` above 0
    needs a mask.
    """

    takes: ClassVar[Domain] = Domain.IMAGE
    gives: ClassVar[Domain] = Domain.IMAGE
    augments: ClassVar[bool] = True

    size: int | tuple[int, ...]
    foreground: float = 0.5

    def __post_init__(self) -> None:
        check_size("size", self.size)
        check_probability("foreground", self.foreground)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the patch. Raises DataError for an image smaller than it, boxes, or an absent mask that is needed."""
        image = sample_image(sample, flat=False)
        size, space, mask = sides_of(self.size, image), image.shape[1:], sample.get("mask")
        _check_fits(space, size)
        if sample.get("boxes") is not None:
            raise DataError("RandomPatch moves no boxes", found="a sample with boxes", fix="use RandomCrop")
        if self.foreground > 0 and mask is None:
            raise DataError("RandomPatch needs a mask", found="a sample without", fix="set foreground=0")
        target = _random_foreground(mask, rng) if mask is not None and rng.random() < self.foreground else None
        corner = _random_corner(space, size, target, rng)
        patch: Sample = {"image": image[_window(corner, size)].clone()}
        if mask is not None:
            patch["mask"] = mask[_window(corner, size)].clone()
        return {**sample, **patch}


def _random_corner(
    space: Sequence[int], size: Sequence[int], target: Sequence[int] | None, rng: np.random.Generator
) -> Corner:
    """Return the corner of a patch inside `space`; if `target` is a place, of one that holds it."""
    low = [0] * len(space) if target is None else [max(0, t - s + 1) for t, s in zip(target, size, strict=True)]
    high = [length - side for length, side in zip(space, size, strict=True)]
    if target is not None:
        high = [min(most, place) for most, place in zip(high, target, strict=True)]
    return tuple(int(rng.integers(least, most + 1)) for least, most in zip(low, high, strict=True))


def _random_foreground(mask: Tensor, rng: np.random.Generator) -> tuple[int, ...] | None:
    """Return a place of the mask above 0, all alike probable; None where there is none."""
    flat = mask.reshape(-1)
    guesses = torch.from_numpy(rng.integers(len(flat), size=_GUESSES))
    hits = guesses[flat[guesses] > 0]  # most masks need no look at every voxel
    if not len(hits):
        hits = (flat > 0).nonzero().flatten()
        if not len(hits):
            return None
        hits = hits[int(rng.integers(len(hits)))][None]
    return tuple(int(place) for place in np.unravel_index(int(hits[0]), tuple(mask.shape)))
