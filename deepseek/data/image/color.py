"""Colour and light of images: brightness, contrast, saturation, hue, and grey. Masks and boxes stay.

Brightness, contrast and saturation blend with black, with the mean grey level, and with the grey image, as Pillow's
`ImageEnhance` does; grey is 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601). Hue turns in the hexagonal cone of HSV (Smith
1978, https://doi.org/10.1145/965139.807361) with brightness and saturation kept. Functions take uint8 or float of full
scale 1, (..., channels, height, width) with one channel (grey) or three (RGB).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from deepseek.data.image.settings import check_image, check_probability, check_range, sample_image
from deepseek.data.pipeline.stage import Domain, Sample, SampleStage
from deepseek.errors import DataError

_GREY = (0.299, 0.587, 0.114)


def adjust_brightness(image: Tensor, factor: float) -> Tensor:
    """Return the images times `factor`: 0 is black, 1 the same. Raises DataError for a tensor that is no image."""
    return _with_levels(image, lambda levels, top: _brightness(levels, factor, top))


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """Return the images with all differences from their mean grey level times `factor`. Raises DataError."""
    return _with_levels(image, lambda levels, top: _contrast(levels, factor, top))


def adjust_saturation(image: Tensor, factor: float) -> Tensor:
    """Return the images with all differences from their grey image times `factor`: 0 is grey. Raises DataError."""
    return _with_levels(image, lambda levels, top: _saturation(levels, factor, top))


def adjust_hue(image: Tensor, turn: float) -> Tensor:
    """Return the images with hues moved on by `turn` of the colour circle (1/3: red to green). Raises DataError."""
    return _with_levels(image, lambda levels, top: _hue(levels, turn))


def grayscale(image: Tensor) -> Tensor:
    """Return the grey images, with as many channels as they had. Raises DataError for a tensor that is no image."""
    return _with_levels(image, lambda levels, top: _grey(levels).expand_as(levels).contiguous())


def _with_levels(image: Tensor, change: Callable[[Tensor, float], Tensor]) -> Tensor:
    """Return the image after `change`, which gets a float copy of its own and the highest level."""
    check_image(image)
    if image.shape[-3] not in (1, 3):
        raise DataError(
            "colour needs grey or RGB images",
            found=f"{image.shape[-3]} channels",
            wanted="1 or 3",
            fix="read images with channels=3",
        )
    whole = image.dtype == torch.uint8
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    levels = image.to(dtype, memory_format=torch.contiguous_format, copy=True)
    levels = change(levels, 255.0 if whole else 1.0)
    if whole:
        levels = levels.add_(0.5).to(torch.int16)  # by way of int16 it is three times as fast
    return levels.to(image.dtype)


def _grey(levels: Tensor) -> Tensor:
    """Return the grey levels (..., 1, height, width)."""
    if levels.shape[-3] == 1:
        return levels
    red, green, blue = levels.unbind(-3)
    return (red * _GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2]).unsqueeze(-3)


def _brightness(levels: Tensor, factor: float, top: float) -> Tensor:
    levels.mul_(factor)
    return levels.clamp_(max=top) if factor > 1 else levels


def _contrast(levels: Tensor, factor: float, top: float) -> Tensor:
    means = levels.mean((-2, -1), keepdim=True)  # the mean of the grey is the grey of the means
    torch.add(_grey(means) * (1 - factor), levels, alpha=factor, out=levels)
    return levels.clamp_(0, top) if factor > 1 else levels


def _saturation(levels: Tensor, factor: float, top: float) -> Tensor:
    if levels.shape[-3] == 1:
        return levels
    levels.lerp_(_grey(levels), 1 - factor)
    return levels.clamp_(0, top) if factor > 1 else levels


def _hue(levels: Tensor, turn: float) -> Tensor:
    """Turn the hue without a branch, in few passes over the planes.

    With r, g, b scaled so that the smallest is 0 and the largest 1, the hue from -3 to 3 sixths of the circle is
    1 + g + b - r with the sign of g - b. A channel at distance d from its own hue (0, 2 and -2) is then
    |d - 3| - 1, cut to 0 and 1. All is kept times the chroma, so that nothing is divided.
    """
    if levels.shape[-3] == 1:
        return levels
    thirds = round(3 * turn)  # a third of the circle exchanges channels; what is left is at most a sixth
    rest = 6 * turn - 2 * thirds
    red, green, blue = levels.unbind(-3)
    high = torch.maximum(red, green)
    torch.maximum(high, blue, out=high)
    low = torch.minimum(red, green)
    torch.minimum(low, blue, out=low)
    chroma = high - low
    base = low - chroma
    hue = (green + blue).sub_(red).sub_(base)
    hue.copysign_(green - blue)
    distance = torch.empty_like(hue)
    for channel, own in enumerate((0, 2, -2)):
        torch.add(hue, chroma, alpha=rest - own, out=distance)
        distance.abs_().sub_(chroma, alpha=3).abs_().add_(base)
        torch.clamp(distance, low, high, out=levels.select(-3, (channel + thirds) % 3))
    return levels


@dataclass(frozen=True)
class ColorJitter(SampleStage):
    """Changes brightness, contrast, saturation and hue by random amounts, in random order, with probability `p`.

    The factor of each of the first three is uniform in [max(0, 1 - x), 1 + x]; the hue moves by up to +-`hue` turns of
    the colour circle. Grey images keep saturation and hue.
    """

    takes: ClassVar[Domain] = Domain.IMAGE
    gives: ClassVar[Domain] = Domain.IMAGE
    augments: ClassVar[bool] = True

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05
    p: float = 1.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            check_range(name, (0.0, getattr(self, name)), 0.0, 100.0)
        check_range("hue", (0.0, self.hue), 0.0, 0.5)
        check_probability("p", self.p)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample with other colours, or as it is. Raises DataError for an image that is no grey or RGB."""
        image = sample_image(sample)
        if rng.random() >= self.p:
            return dict(sample)
        amounts = (self.brightness, self.contrast, self.saturation)
        factors = [float(rng.uniform(max(0.0, 1 - amount), 1 + amount)) for amount in amounts]
        turn = float(rng.uniform(-self.hue, self.hue))
        changes: list[Callable[[Tensor, float], Tensor]] = [
            lambda levels, top: _brightness(levels, factors[0], top),
            lambda levels, top: _contrast(levels, factors[1], top),
            lambda levels, top: _saturation(levels, factors[2], top),
            lambda levels, top: _hue(levels, turn) if turn else levels,
        ]
        order = rng.permutation(len(changes))

        def all_of_them(levels: Tensor, top: float) -> Tensor:
            for place in order:
                levels = changes[place](levels, top)
            return levels

        return {**sample, "image": _with_levels(image, all_of_them)}


@dataclass(frozen=True)
class Grayscale(SampleStage):
    """Takes the colour away with probability `p`; the image keeps its number of channels."""

    takes: ClassVar[Domain] = Domain.IMAGE
    gives: ClassVar[Domain] = Domain.IMAGE
    augments: ClassVar[bool] = True

    p: float = 0.1

    def __post_init__(self) -> None:
        check_probability("p", self.p)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample in grey, or as it is. Raises DataError for an image that is no grey or RGB."""
        image = sample_image(sample)
        return {**sample, "image": grayscale(image)} if rng.random() < self.p else dict(sample)
