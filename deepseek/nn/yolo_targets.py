"""Which anchors of which cells learn which box: YOLOv5's assignment, as tensors of fixed shape.

A box is learnt by every anchor whose sides are within a factor of its own, in the cell that holds its centre and in
the nearer of its two horizontal and of its two vertical neighbours. Nothing here depends on how many matches there are:
each box has 3 places for each anchor, and `valid` says which of them count; so the loss compiles without a break.
Source: https://docs.ultralytics.com/yolov5/tutorials/architecture_description, "build targets".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class MapTargets(NamedTuple):
    """What one map has to learn. All but `labels` are (batch, boxes, anchors, 3, ...); 3 is own cell, beside, above.

    `cells`: int64, place in the map (anchors, rows, columns) laid flat. `boxes` (..., 4): centre from the cell's
    corner, width and height, in cells. `labels`: (batch, boxes), int64. `valid`: True where there is a match.
    """

    cells: Tensor
    boxes: Tensor
    labels: Tensor
    valid: Tensor


def assign_targets(
    boxes: Tensor,
    counts: Tensor,
    anchors: Sequence[Sequence[float]],
    cells: tuple[int, int],
    stride: int,
    max_ratio: float = 4.0,
) -> MapTargets:
    """Return the targets of one map of `cells` (rows, columns).

    `boxes` (batch, n, 5): class, and centre, width and height as shares of the image; the first `counts` (batch,) of
    each row are real. `anchors`: width and height in pixels; a side may differ from them by a factor below `max_ratio`.
    """
    rows, columns = cells
    size = torch.tensor([columns, rows], device=boxes.device, dtype=torch.float32)
    centre, sides = boxes[..., 1:3].float() * size, boxes[..., 3:5].float() * size  # in cells
    shapes = torch.tensor(anchors, device=boxes.device, dtype=torch.float32) / stride
    real = torch.arange(boxes.shape[1], device=boxes.device) < counts[:, None]
    real = real & (sides > 0).all(-1)
    ratio = sides[:, :, None] / shapes  # (batch, n, anchors, 2)
    fits = torch.maximum(ratio, 1 / ratio).amax(-1) < max_ratio
    places, inside = _places(centre, size)
    valid = (real[:, :, None] & fits)[..., None] & inside[:, :, None]
    number = torch.arange(len(anchors), device=boxes.device)[:, None]
    inside_map = torch.minimum(places.clamp(min=0), size - 1).long()
    flat = inside_map[..., 1] * columns + inside_map[..., 0]  # (batch, n, 3)
    offset = (centre[:, :, None] - places)[:, :, None].expand(*valid.shape, 2)
    return MapTargets(
        number * (rows * columns) + flat[:, :, None],
        torch.cat((offset, sides[:, :, None, None].expand(*valid.shape, 2)), dim=-1),
        boxes[..., 0].long(),
        valid,
    )


def _places(centre: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Return the corners (batch, n, 3, 2) of the three cells of each centre, and which of them (batch, n, 3) count.

    A centre exactly in the middle has no nearer neighbour; one past the edge of the image has no cell at all.
    """
    own = torch.minimum(centre.floor(), size - 1)
    side = centre - own - 0.5
    step = side.sign()
    nothing = torch.zeros_like(step[..., 0])
    steps = torch.stack(
        (torch.zeros_like(step), torch.stack((step[..., 0], nothing), -1), torch.stack((nothing, step[..., 1]), -1)), -2
    )
    places = own[..., None, :] + steps
    moved = steps.abs().sum(-1) > 0
    moved[..., 0] = True
    inside = ((places >= 0) & (places < size)).all(-1)
    on_image = ((centre >= 0) & (centre <= size)).all(-1)
    return places, moved & inside & on_image[..., None]
