"""Checks that the image stages share: their settings, and the tensors they are given. Not here: any computation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deepseek.data.pipeline.stage import Sample
from deepseek.errors import ConfigError, DataError

LARGEST_SIDE = 65_535
"""The largest side, in pixels, that a stage may be asked to make."""

Size = int | tuple[int, ...]
"""One number for all sides, or (height, width), or (depth, height, width)."""


def check_size(name: str, size: Size, lowest: int = 1) -> None:
    """Raise ConfigError unless `size` is one whole number or two or three, each from `lowest` to LARGEST_SIDE."""
    sides = tuple(size) if isinstance(size, tuple | list) else (size,)
    whole = all(
        isinstance(side, int) and not isinstance(side, bool) and lowest <= side <= LARGEST_SIDE for side in sides
    )
    if not whole or (sides != (size,) and len(sides) not in (2, 3)):
        raise ConfigError(
            f"{name} is no size of an image",
            found=repr(size),
            wanted=f"a number of pixels or (height, width), each {lowest} to {LARGEST_SIDE}",
        )


def sides_of(size: Size, image: Tensor) -> tuple[int, ...]:
    """Return the sides that `size` means for an image (channels, *space). Raises ConfigError if they are too many."""
    dims = image.dim() - 1
    if isinstance(size, int):
        return (size,) * dims
    if len(size) != dims:
        raise ConfigError(
            "the size has another number of sides than the image",
            found=f"{tuple(size)} for an image of shape {tuple(image.shape)}",
            wanted=f"{dims} numbers",
        )
    return tuple(size)


def check_probability(name: str, value: float) -> None:
    """Raise ConfigError unless `value` is from 0 to 1."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} is no probability", found=value, wanted="0 to 1")


def check_range(name: str, values: Sequence[float], lowest: float, highest: float = math.inf) -> None:
    """Raise ConfigError unless `values` are two finite numbers, smaller first, within [lowest, highest]."""
    if len(values) != 2 or not lowest <= values[0] <= values[1] <= highest or math.isinf(values[1]):
        bound = f"{lowest:g} to {highest:g}" if math.isfinite(highest) else f"at least {lowest:g}"
        raise ConfigError(f"{name} is no range", found=repr(values), wanted=f"two numbers, smaller first, {bound}")


def check_levels(fill: float, mask_fill: int) -> None:
    """Raise ConfigError unless `fill` is a level of an 8-bit image and `mask_fill` a whole number."""
    if not 0 <= fill <= 255:
        raise ConfigError("fill is no grey level", found=fill, wanted="0 to 255 (float images take fill / 255)")
    if not isinstance(mask_fill, int):
        raise ConfigError("mask_fill is no class", found=repr(mask_fill), wanted="a whole number")


def check_image(image: Tensor, lowest_dim: int = 3, wanted: str = "(..., channels, height, width)") -> Tensor:
    """Return the image. Raises DataError unless it is uint8 or float, has that many dimensions, and is not empty."""
    if not isinstance(image, Tensor):
        raise DataError("an image is a tensor", found=type(image).__name__, wanted=wanted, fix="use read_image")
    if image.dim() < lowest_dim or 0 in image.shape or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise DataError(
            "this tensor is no image",
            found=f"{image.dtype} of shape {tuple(image.shape)}",
            wanted=f"uint8 or float of shape {wanted}, not empty",
        )
    return image


def sample_image(sample: Sample, flat: bool = True) -> Tensor:
    """Return a sample's image (channels, *space) after checking it and its mask; `flat` refuses volumes.

    Raises DataError for another kind of tensor, or a mask of another size than the image.
    """
    image = check_image(sample["image"], 3, "(channels, height, width)")
    if image.dim() > (3 if flat else 4):
        wanted = (
            "(channels, height, width)" if flat else "(channels, height, width) or (channels, depth, height, width)"
        )
        raise DataError("the image has too many dimensions", found=f"shape {tuple(image.shape)}", wanted=wanted)
    mask = sample.get("mask")
    if mask is not None and mask.shape != image.shape[1:]:
        raise DataError(
            "mask and image differ in size", found=str(tuple(mask.shape)), wanted=str(tuple(image.shape[1:]))
        )
    return image


def fill_value(fill: float, image: Tensor) -> float:
    """Return a grey level 0 to 255 in the units of the image: as it is for uint8, as a share of 1 for float."""
    return fill if image.dtype == torch.uint8 else fill / 255
