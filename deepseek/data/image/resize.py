"""Images scaled to a wanted size, with their masks and boxes: stretched, in proportion, or in a letterbox.

Bilinear and bicubic scaling widen their kernel when they shrink an image (antialiasing), as Pillow does; uint8 stays
uint8, rounded to nearest, within one level of Pillow's result (bicubic: two). Masks take the nearest pixel's class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.data.image.boxes import Matrix, boxes_moved
from deepseek.data.image.settings import (
    LARGEST_SIDE,
    Size,
    check_image,
    check_levels,
    check_size,
    fill_value,
    sample_image,
    sides_of,
)
from deepseek.data.pipeline.stage import Domain, Sample, SampleStage
from deepseek.errors import ConfigError, DataError
from deepseek.nn.letterbox import Placement

Interpolation = Literal["nearest", "bilinear", "bicubic"]
"""How values between pixels come about; in volumes "bilinear" and "bicubic" hold for all three axes."""


def resize_image(
    image: Tensor, size: Sequence[int], interpolation: Interpolation = "bilinear", antialias: bool = True
) -> Tensor:
    """Return the images (..., channels, *space) with new sides `size`, two or three numbers as `space` has.

    uint8 stays uint8, float stays float; bicubic overshoots at edges, which uint8 cuts off at 0 and 255 and float
    keeps. Without `antialias` a smaller image is sampled at points. Raises ConfigError for a wrong size or method and
    DataError for a tensor that is no image.
    """
    check_interpolation(interpolation)
    sides = tuple(size)
    check_size("size", sides)
    check_image(image, len(sides) + 1, "(..., channels, *space)")
    if tuple(image.shape[-len(sides) :]) == sides:
        return image
    if interpolation == "nearest":
        return resize_nearest(image, sides)
    planes = _resize_planes(image, sides[-2:], interpolation, antialias)
    if len(sides) == 2:
        return planes
    columns = planes.flatten(-2)  # (..., channels, depth, height * width): the kernels are separable
    columns = _resize_planes(columns, (sides[0], columns.shape[-1]), interpolation, antialias)
    return columns.reshape(*columns.shape[:-1], *sides[1:])


def resize_nearest(values: Tensor, size: Sequence[int]) -> Tensor:
    """Return the values (..., *space) of any dtype with new sides `size`, each from the pixel its centre falls in."""
    for axis, new in enumerate(size, start=-len(size)):
        old = values.shape[axis]
        if new != old:
            source = (2 * torch.arange(new, device=values.device) + 1) * old // (2 * new)
            values = values.index_select(axis, source)
    return values


def letterbox_image(image: Tensor, size: Sequence[int], fill: float = 114.0) -> tuple[Tensor, Placement]:
    """Return the images (..., channels, height, width) scaled in proportion into the middle of `size`, and where.

    `fill` is the level of the bars, 0 to 255 (float images take fill / 255). Boxes follow with
    `deepseek.nn.letterbox.letterbox_boxes`, and back. Raises ConfigError and DataError as `resize_image` does.
    """
    check_size("size", tuple(size))
    check_image(image)
    height, width = image.shape[-2:]
    scale = min(size[0] / height, size[1] / width)
    inner = (max(1, round(height * scale)), max(1, round(width * scale)))
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    placement = Placement(inner[1] / width, inner[0] / height, left, top, height, width)
    return _framed(resize_image(image, inner), size, top, left, fill_value(fill, image)), placement


def _framed(values: Tensor, size: Sequence[int], top: int, left: int, fill: float) -> Tensor:
    height, width = values.shape[-2:]
    return F.pad(values, (left, size[1] - width - left, top, size[0] - height - top), value=fill)


def _resize_planes(image: Tensor, size: tuple[int, ...], mode: str, antialias: bool) -> Tensor:
    """Return images (..., height, width) scaled to `size`, with the dtype they had."""
    batch = image.reshape(-1, *image.shape[-3:])  # a view of one image, so that interleaved pixels stay so
    native = image.dtype in (torch.float32, torch.float64) or (image.dtype == torch.uint8 and not image.is_cuda)
    batch = batch if native else batch.float()
    if size[1] > 1:
        scaled = F.interpolate(batch, size, mode=mode, antialias=antialias)
    else:  # torch 2.13 mistakes the memory layout of a result one pixel wide: one axis after the other, wider
        column = _new_height(batch.transpose(-1, -2), 1, mode, antialias).transpose(-1, -2)
        scaled = _new_height(column, size[0], mode, antialias)
    if image.dtype == torch.uint8 and not native:
        scaled = scaled.round().clamp(0, 255)
    return scaled.to(image.dtype).reshape(*image.shape[:-2], *size)


def _new_height(batch: Tensor, height: int, mode: str, antialias: bool) -> Tensor:
    """Return images (batch, channels, height, width) with another height, of any width from 1 on."""
    wider = torch.cat((batch, batch[..., :1]), dim=-1)
    return F.interpolate(wider, (height, wider.shape[-1]), mode=mode, antialias=antialias)[..., :-1]


def check_interpolation(interpolation: str) -> None:
    if interpolation not in get_args(Interpolation):
        raise ConfigError("unknown interpolation", found=repr(interpolation), wanted=", ".join(get_args(Interpolation)))


@dataclass(frozen=True)
class Resize(SampleStage):
    """Scales the image to `size` (height, width), one number for a square; masks by nearest pixel, boxes along.

    With `keep_aspect` the image keeps its proportions and becomes the smallest that covers `size`, for a crop to
    follow. Volumes (channels, depth, height, width) are taken with one number or three; their boxes move in the last
    two axes.
    """

    takes: ClassVar[Domain] = Domain.IMAGE
    gives: ClassVar[Domain] = Domain.IMAGE

    size: Size = 224
    keep_aspect: bool = False
    interpolation: Interpolation = "bilinear"
    antialias: bool = True

    def __post_init__(self) -> None:
        check_size("size", self.size)
        check_interpolation(self.interpolation)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the scaled sample. Raises DataError for an image of another form, or too long to cover the size."""
        image = sample_image(sample, flat=False)
        old = tuple(image.shape[1:])
        new = sides_of(self.size, image)
        if self.keep_aspect:
            scale = max(wanted / side for wanted, side in zip(new, old, strict=True))
            new = tuple(max(wanted, round(side * scale)) for wanted, side in zip(new, old, strict=True))
            if max(new) > LARGEST_SIDE:
                raise DataError(
                    "the image is too long to cover the size in proportion",
                    found=f"{old} would become {new}",
                    wanted=f"sides up to {LARGEST_SIDE}",
                    fix="use Letterbox, or keep_aspect=False",
                )
        matrix: Matrix = ((new[-1] / old[-1], 0.0, 0.0), (0.0, new[-2] / old[-2], 0.0))
        mask: dict[str, Any] = {}
        if sample.get("mask") is not None:
            mask = {"mask": resize_nearest(sample["mask"], new)}
        scaled = resize_image(image, new, self.interpolation, self.antialias)
        return {**sample, "image": scaled, **mask, **boxes_moved(sample, matrix)}


@dataclass(frozen=True)
class Letterbox(SampleStage):
    """Scales the image in proportion into the middle of `size` (height, width), with bars of level `fill`.

    `fill` is 0 to 255 (float images take fill / 255); the mask has class `mask_fill` in the bars; boxes follow.
    """

    takes: ClassVar[Domain] = Domain.IMAGE
    gives: ClassVar[Domain] = Domain.IMAGE

    size: Size = 640
    fill: float = 114.0
    mask_fill: int = 0

    def __post_init__(self) -> None:
        check_size("size", self.size)
        check_levels(self.fill, self.mask_fill)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample in its letterbox. Raises DataError for an image of another form."""
        image = sample_image(sample)
        size = sides_of(self.size, image)
        framed, place = letterbox_image(image, size, self.fill)
        mask: dict[str, Any] = {}
        if sample.get("mask") is not None:
            inner = (round(place.height * place.scale_y), round(place.width * place.scale_x))
            mask = {"mask": _framed(resize_nearest(sample["mask"], inner), size, place.top, place.left, self.mask_fill)}
        matrix: Matrix = ((place.scale_x, 0.0, float(place.left)), (0.0, place.scale_y, float(place.top)))
        return {**sample, "image": framed, **mask, **boxes_moved(sample, matrix)}
