"""Boxes that follow an image through a geometric change.

A change is an affine map of points (x, y) in pixels, where pixel i covers [i, i + 1]. A box becomes the smallest
upright box around its four moved corners, so a turned box grows. What leaves the image is cut off; a box of which too
little is left is dropped with its class. Not here: overlap and suppression (`deepseek.nn.boxes`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepseek.data.pipeline.stage import Sample
from deepseek.errors import DataError
from deepseek.nn.boxes import box_area, clip_boxes

Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]
"""x' = m[0][0] x + m[0][1] y + m[0][2], and y' likewise from m[1]."""


def move_boxes(boxes: Tensor, matrix: Matrix) -> Tensor:
    """Return the upright hulls (..., 4) of the corners of xyxy boxes (..., 4) after the affine map `matrix`."""
    low, high = [], []
    for along_x, along_y, shift in matrix:
        x = boxes[..., 0::2] * along_x
        y = boxes[..., 1::2] * along_y
        low.append(x.amin(-1) + y.amin(-1) + shift)
        high.append(x.amax(-1) + y.amax(-1) + shift)
    return torch.stack((*low, *high), dim=-1)


def clip_and_select(boxes: Tensor, height: int, width: int, min_visible: float = 0.1) -> tuple[Tensor, Tensor]:
    """Return the xyxy boxes (n, 4) cut at the edges of an image, and which of them to keep, bool (n,).

    Kept are boxes with an area left that is at least `min_visible` of what it was.
    """
    clipped = clip_boxes(boxes, height, width)
    left = box_area(clipped)
    return clipped, (left > 0) & (left >= min_visible * box_area(boxes))


def sample_boxes(sample: Sample) -> Tensor | None:
    """Return a sample's boxes (n, 4), None where it has none.

    Raises DataError for another shape, for whole numbers (which can't move by parts of a pixel), or where `box_labels`
    has another length.
    """
    boxes = sample.get("boxes")
    if boxes is None:
        return None
    if not isinstance(boxes, Tensor) or boxes.dim() != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        found = f"{boxes.dtype} of shape {tuple(boxes.shape)}" if isinstance(boxes, Tensor) else type(boxes).__name__
        raise DataError("boxes have another form", found=found, wanted="float of shape (n, 4): x1 y1 x2 y2 in pixels")
    labels = sample.get("box_labels")
    if labels is not None and len(labels) != len(boxes):
        raise DataError("boxes and box_labels differ in number", found=f"{len(boxes)} and {len(labels)}")
    return boxes


def boxes_moved(sample: Sample, matrix: Matrix) -> dict[str, Any]:
    """Return the sample's boxes after the map, as changes to the sample: all stay, none is cut."""
    boxes = sample_boxes(sample)
    return {} if boxes is None else {"boxes": move_boxes(boxes, matrix)}


def boxes_cut(sample: Sample, matrix: Matrix, size: tuple[int, int], min_visible: float) -> dict[str, Any]:
    """Return the boxes after the map, cut at an image of `size` (height, width), and their classes, as changes.

    Both lose the boxes of which less than `min_visible` of the area is left.
    """
    boxes = sample_boxes(sample)
    if boxes is None:
        return {}
    clipped, kept = clip_and_select(move_boxes(boxes, matrix), *size, min_visible)
    labels = {"box_labels": sample["box_labels"][kept]} if sample.get("box_labels") is not None else {}
    return {"boxes": clipped[kept], **labels}
