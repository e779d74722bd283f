"""Random erasing: a rectangle of the pixels is overwritten, so that a model looks at more than one part.

Source: Zhong et al. 2017, arXiv:1708.04896.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from deepseek.data.image.settings import check_probability, check_range
from deepseek.data.pipeline.stage import Domain, Sample, SampleStage
from deepseek.errors import ConfigError, DataError

_TRIES = 100

Rectangle = tuple[int, int, int, int]
"""top, left, height, width in pixels."""


def erase(images: Tensor, rectangle: Rectangle, value: float | Tensor = 0.0) -> Tensor:
    """Return images (..., height, width) with `rectangle` (top, left, height, width) overwritten by `value`.

    A tensor `value` broadcasts to (..., height, width) of the rectangle. Raises DataError for a rectangle that is not
    inside the images.
    """
    top, left, height, width = rectangle
    if min(rectangle) < 0 or top + height > images.shape[-2] or left + width > images.shape[-1]:
        raise DataError(
            "the rectangle is not inside the image", found=str(rectangle), wanted=f"within {tuple(images.shape[-2:])}"
        )
    erased = images.clone()
    erased[..., top : top + height, left : left + width] = value
    return erased


def random_rectangle(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Rectangle | None:
    """Return a random rectangle inside an image of `size` (height, width), None where a hundred tries gave none.

    Its area is a share of the image's from `scale`, its height over its width from `ratio`, evenly on a log scale, so
    that lying and standing ones are as frequent (the paper draws evenly on a plain one, which favours standing ones).
    """
    for _ in range(_TRIES):
        area = size[0] * size[1] * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < height < size[0] and 0 < width < size[1]:
            return int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1)), height, width
    return None


@dataclass(frozen=True)
class RandomErasing(SampleStage):
    """Overwrites a random rectangle of `pixel_values` (channels, height, width) with probability `p`.

    `scale` is the range of its share of the area, `ratio` that of its height over its width. `value` is what it is
    filled with: "random", normal noise for each pixel and channel (the spread of normalised pixels), or a number.
    A mask and boxes stay as they are. Where no such rectangle fits (images of a few pixels) nothing is erased.
    """

    takes: ClassVar[Domain] = Domain.PIXELS
    gives: ClassVar[Domain] = Domain.PIXELS
    augments: ClassVar[bool] = True

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.4)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    value: float | Literal["random"] = "random"

    def __post_init__(self) -> None:
        check_probability("p", self.p)
        check_range("scale", self.scale, 0.0, 1.0)
        check_range("ratio", self.ratio, 1e-6)
        if self.value != "random" and (isinstance(self.value, str) or not math.isfinite(self.value)):
            raise ConfigError("value is no filling", found=repr(self.value), wanted="'random' or a number")

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample, a rectangle of it erased or not. Raises DataError for pixels that are no flat image."""
        pixels: Tensor = sample["pixel_values"]
        if pixels.ndim != 3 or not pixels.is_floating_point():
            found = f"{pixels.dtype} of shape {tuple(pixels.shape)}"
            raise DataError("these pixels can't be erased", found=found, wanted="float (channels, height, width)")
        if rng.random() >= self.p:
            return dict(sample)
        rectangle = random_rectangle((pixels.shape[1], pixels.shape[2]), self.scale, self.ratio, rng)
        if rectangle is None:
            return dict(sample)
        value: float | Tensor
        if isinstance(self.value, str):
            noise = rng.standard_normal((len(pixels), *rectangle[2:]), dtype=np.float32)
            value = torch.from_numpy(noise).to(pixels.dtype)
        else:
            value = float(self.value)
        return {**sample, "pixel_values": erase(pixels, rectangle, value)}
