"""Parts cut out of images, with their masks and boxes: in the middle, anywhere, or of any size and scaled.

A part may reach past the image; what is outside is filled. Source of the random resized crop: Szegedy et al. 2015,
arXiv:1409.4842, section 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from deepseek.data.image.boxes import Matrix, boxes_cut
from deepseek.data.image.resize import Interpolation, check_interpolation, resize_image, resize_nearest
from deepseek.data.image.settings import (
    Size,
    check_levels,
    check_probability,
    check_range,
    check_size,
    fill_value,
    sample_image,
    sides_of,
)
from deepseek.data.pipeline.stage import Domain, Sample, SampleStage

_TRIES = 10
"""Draws of a shape that fits into the image before the largest part in the middle is taken."""


def crop_image(values: Tensor, start: Sequence[int], size: Sequence[int], fill: float = 0.0) -> Tensor:
    """Return the part of `values` (..., *space) that begins at `start` and has sides `size`.

    `start` and `size` have as many numbers as `space`, any dtype is taken; `fill` stands where the part lies outside.
    The part shares memory with `values` where it lies inside.
    """
    pads: list[int] = []
    for axis, (begin, length) in enumerate(zip(start, size, strict=True), start=-len(size)):
        side = values.shape[axis]
        low, high = min(max(begin, 0), side), min(max(begin + length, 0), side)
        values = values.narrow(axis, low, high - low)
        before = min(max(-begin, 0), length)
        pads = [before, length - (high - low) - before, *pads]  # the last axis comes first in F.pad
    return F.pad(values, pads, value=fill) if any(pads) else values


def resized_crop(
    image: Tensor,
    start: Sequence[int],
    part: Sequence[int],
    size: Sequence[int],
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Return the part at `start` (top, left) with sides `part` of images (..., channels, height, width), at `size`."""
    return resize_image(crop_image(image, start, part), size, interpolation)


def random_part(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (top, left), (height, width) of a random part of an image.

    Its area is uniform in `scale` (shares of the image's), its width to height log-uniform in `ratio`. After ten draws
    that don't fit, it is the largest part in the middle whose ratio is nearest to the image's.
    """
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        part = (round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect)))
        if 0 < part[0] <= height and 0 < part[1] <= width:
            top, left = rng.integers(0, height - part[0] + 1), rng.integers(0, width - part[1] + 1)
            return (int(top), int(left)), part
    aspect = min(max(width / height, ratio[0]), ratio[1])
    part = (min(height, max(1, round(width / aspect))), min(width, max(1, round(height * aspect))))
    return ((height - part[0]) // 2, (width - part[1]) // 2), part


@dataclass(frozen=True)
class CenterCrop(SampleStage):
    """Cuts the middle of `size` (height, width) out of the image; a smaller image gets a frame of level `fill`.

    `fill` is 0 to 255 (float images take fill / 255), the mask's frame has class `mask_fill`. Boxes are cut at the
    edges; one with less than `min_visible` of its area left is dropped with its class. Volumes: one number or three.
    """

    takes: ClassVar[Domain] = Domain.IMAGE
    gives: ClassVar[Domain] = Domain.IMAGE

    size: Size = 224
    fill: float = 0.0
    mask_fill: int = 0
    min_visible: float = 0.1

    def __post_init__(self) -> None:
        check_size("size", self.size)
        check_levels(self.fill, self.mask_fill)
        check_probability("min_visible", self.min_visible)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample's middle. Raises DataError for an image of another form."""
        image = sample_image(sample, flat=False)
        size = sides_of(self.size, image)
        start = [(side - wanted) // 2 for side, wanted in zip(image.shape[1:], size, strict=True)]
        return _cut(sample, start, size, self)


@dataclass(frozen=True)
class RandomCrop(SampleStage):
    """Cuts a part of `size` (height, width) out of the image, anywhere, after a frame of `padding` pixels was added.

    A side that is still too short gets the frame it lacks, on both sides alike. Fill, mask, boxes and volumes: as in
    CenterCrop.
    """

    takes: ClassVar[Domain] = Domain.IMAGE
    gives: ClassVar[Domain] = Domain.IMAGE
    augments: ClassVar[bool] = True

    size: Size = 224
    padding: Size = 0
    fill: float = 0.0
    mask_fill: int = 0
    min_visible: float = 0.1

    def __post_init__(self) -> None:
        check_size("size", self.size)
        check_size("padding", self.padding, lowest=0)
        check_levels(self.fill, self.mask_fill)
        check_probability("min_visible", self.min_visible)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return a part of the sample. Raises DataError for an image of another form."""
        image = sample_image(sample, flat=False)
        size, padding = sides_of(self.size, image), sides_of(self.padding, image)
        start = []
        for side, frame, wanted in zip(image.shape[1:], padding, size, strict=True):
            room = side + 2 * frame - wanted
            start.append(int(rng.integers(0, room + 1)) - frame if room >= 0 else (side - wanted) // 2)
        return _cut(sample, start, size, self)


@dataclass(frozen=True)
class RandomResizedCrop(SampleStage):
    """Cuts a part of random area and shape out of the image and scales it to `size` (height, width).

    The area is uniform in `scale` (shares of the image's), width to height log-uniform in `ratio`. Boxes are cut at the
    edges; one with less than `min_visible` of its area left is dropped with its class.
    """

    takes: ClassVar[Domain] = Domain.IMAGE
    gives: ClassVar[Domain] = Domain.IMAGE
    augments: ClassVar[bool] = True

    size: Size = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    min_visible: float = 0.1

    def __post_init__(self) -> None:
        check_size("size", self.size)
        check_range("scale", self.scale, 1e-9, 1.0)
        check_range("ratio", self.ratio, 1e-3, 1e3)
        check_interpolation(self.interpolation)
        check_probability("min_visible", self.min_visible)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return a scaled part of the sample. Raises DataError for an image of another form."""
        image = sample_image(sample)
        height, width = sides_of(self.size, image)
        (top, left), part = random_part(image.shape[1], image.shape[2], self.scale, self.ratio, rng)
        mask: dict[str, Any] = {}
        if sample.get("mask") is not None:
            mask = {"mask": resize_nearest(crop_image(sample["mask"], (top, left), part), (height, width))}
        along_y, along_x = height / part[0], width / part[1]
        matrix: Matrix = ((along_x, 0.0, -left * along_x), (0.0, along_y, -top * along_y))
        boxes = boxes_cut(sample, matrix, (height, width), self.min_visible)
        scaled = resized_crop(image, (top, left), part, (height, width), self.interpolation)
        return {**sample, "image": scaled, **mask, **boxes}


def _cut(sample: Sample, start: Sequence[int], size: Sequence[int], stage: CenterCrop | RandomCrop) -> Sample:
    image = sample["image"]
    mask: dict[str, Any] = {}
    if sample.get("mask") is not None:
        mask = {"mask": crop_image(sample["mask"], start, size, stage.mask_fill)}
    matrix: Matrix = ((1.0, 0.0, -float(start[-1])), (0.0, 1.0, -float(start[-2])))
    boxes = boxes_cut(sample, matrix, (size[-2], size[-1]), stage.min_visible)
    return {**sample, "image": crop_image(image, start, size, fill_value(stage.fill, image)), **mask, **boxes}
