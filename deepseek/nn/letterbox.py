"""Letterbox: an image scaled into a given size without a change of shape, bars at the sides; and boxes there and back.

Not here: which size; YOLOv5 wants multiples of 32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.nn.boxes import clip_boxes

GREY = 114 / 255
"""The bars' brightness, as YOLOv5's data has it."""


class Placement(NamedTuple):
    """Where an image lies in its letterbox: new pixels = old pixels * scale + offset, for x and for y.

    The two scales differ by less than a pixel over the whole side: the scaled image has whole pixels.
    """

    scale_x: float
    scale_y: float
    left: int
    top: int
    height: int
    width: int
    """Sides of the original image, in pixels."""


def letterbox(
    image: Tensor, size: tuple[int, int], fill: float = GREY, enlarge: bool = True
) -> tuple[Tensor, Placement]:
    """Return the image (..., channels, height, width) in the middle of one of `size` (height, width), and where it is.

    Values are float; bars are `fill`. Without `enlarge` a small image keeps its pixels. Raises ModelError for an image
    that is no float tensor of three or four dimensions, or is empty.
    """
    if image.dim() not in (3, 4) or not image.is_floating_point() or 0 in image.shape:
        raise ModelError(
            "letterbox takes float images",
            found=f"{image.dtype} of shape {tuple(image.shape)}",
            wanted="(channels, height, width) or (batch, channels, height, width), as float",
            fix="image.float() / 255",
        )
    height, width = image.shape[-2:]
    scale = min(size[0] / height, size[1] / width)
    if not enlarge:
        scale = min(scale, 1.0)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    batch = image if image.dim() == 4 else image[None]
    if (new_height, new_width) != (height, width):
        batch = F.interpolate(batch, (new_height, new_width), mode="bilinear", antialias=True)
    top, left = (size[0] - new_height) // 2, (size[1] - new_width) // 2
    batch = F.pad(batch, (left, size[1] - new_width - left, top, size[0] - new_height - top), value=fill)
    placement = Placement(new_width / width, new_height / height, left, top, height, width)
    return (batch if image.dim() == 4 else batch[0]), placement


def letterbox_boxes(boxes: Tensor, placement: Placement) -> Tensor:
    """Return xyxy boxes (..., 4) in pixels of the image as pixels of its letterbox."""
    scale, offset = _numbers(boxes, placement)
    return boxes * scale + offset


def unletterbox_boxes(boxes: Tensor, placement: Placement) -> Tensor:
    """Return xyxy boxes (..., 4) in pixels of the letterbox as pixels of the image, cut at its edges."""
    scale, offset = _numbers(boxes, placement)
    return clip_boxes((boxes - offset) / scale, placement.height, placement.width)


def _numbers(boxes: Tensor, placement: Placement) -> tuple[Tensor, Tensor]:
    scale = torch.tensor([placement.scale_x, placement.scale_y] * 2, device=boxes.device, dtype=boxes.dtype)
    offset = torch.tensor([placement.left, placement.top] * 2, device=boxes.device, dtype=boxes.dtype)
    return scale, offset
