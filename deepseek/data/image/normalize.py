"""Images to what a model takes: float pixel values with a known mean and spread for each channel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from deepseek.data.image.settings import check_image, sample_image
from deepseek.data.pipeline.stage import Domain, Sample, SampleStage
from deepseek.errors import ConfigError, DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of each of red, green and blue over ImageNet's training images, full scale 1, as its published models use."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of each channel over the same images."""


def normalize_image(
    image: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Tensor:
    """Return (image - mean) / std by channel, float32, for images (..., channels, height, width).

    uint8 images are first brought to 0 to 1. Raises ConfigError for a std that is not above 0 or for lists of different
    lengths, DataError where the image has another number of channels.
    """
    _check(mean, std)
    check_image(image)
    return _normalize(image, mean, std, image.shape[-3], 2)


def _normalize(image: Tensor, mean: Sequence[float], std: Sequence[float], channels: int, space: int) -> Tensor:
    if channels != len(mean):
        raise DataError(
            "the image has another number of channels than mean and std",
            found=f"{channels} channels, {len(mean)} means",
            fix="give Normalize one mean and one std for each channel, or read images with channels=" + str(len(mean)),
        )
    full = 255.0 if image.dtype == torch.uint8 else 1.0
    shape = (channels, *([1] * space))
    scale = torch.tensor([1 / (full * one) for one in std], device=image.device).reshape(shape)
    shift = torch.tensor([-m / one for m, one in zip(mean, std, strict=True)], device=image.device).reshape(shape)
    return torch.addcmul(shift, image.to(torch.float32), scale)


def _check(mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != len(std) or not mean:
        raise ConfigError("mean and std differ in number", found=f"{len(mean)} and {len(std)}", wanted="as many, >= 1")
    if not all(math.isfinite(value) for value in mean) or not all(0 < value < math.inf for value in std):
        raise ConfigError("mean or std is out of range", found=f"mean={mean!r}, std={std!r}", wanted="std above 0")


@dataclass(frozen=True)
class Normalize(SampleStage):
    """Makes `pixel_values` of the image: (image - mean) / std by channel, uint8 images brought to 0 to 1 before.

    The default values are ImageNet's. Volumes (channels, depth, height, width) are taken too.
    """

    takes: ClassVar[Domain] = Domain.IMAGE
    gives: ClassVar[Domain] = Domain.PIXELS

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        _check(self.mean, self.std)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample with `pixel_values` in the image's place. Raises DataError where channels don't fit."""
        image = sample_image(sample, flat=False)
        rest = {key: value for key, value in sample.items() if key != "image"}
        pixels = _normalize(image, self.mean, self.std, image.shape[0], image.dim() - 1)
        return {**rest, "pixel_values": pixels}
