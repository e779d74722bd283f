"""The loss of a detector with anchors: CIoU of the boxes, objectness of every cell, classes of the matched ones.

Source: https://docs.ultralytics.com/yolov5/tutorials/architecture_description, "compute losses": the objectness to
learn is the CIoU reached, and the maps of small, middle and large objects weigh 4.0, 1.0 and 0.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from deepseek.errors import ModelError
from deepseek.nn.boxes import complete_iou, cxcywh_to_xyxy
from deepseek.nn.checks import check_shape
from deepseek.nn.yolo_targets import MapTargets, assign_targets

MAP_BALANCE = (4.0, 1.0, 0.4)
"""What a map's objectness weighs: fine maps have more cells, and more of them empty."""


class Gains(NamedTuple):
    """What each part weighs, at 80 classes and 640 x 640 pixels; `classes` follows the number of classes, `objectness`
    the number of pixels, so that the balance stays."""

    box: float = 0.05
    objectness: float = 1.0
    classes: float = 0.5


class DetectionLoss(NamedTuple):
    """Float32 scalars: means over the matches (box, classes) or all cells (objectness), weighted by the gains."""

    box: Tensor
    objectness: Tensor
    classes: Tensor

    @property
    def total(self) -> Tensor:
        """The sum of the three parts."""
        return self.box + self.objectness + self.classes


def detection_loss(
    maps: Sequence[Tensor],
    boxes: Tensor,
    counts: Tensor,
    anchors: Sequence[Sequence[Sequence[float]]],
    strides: Sequence[int],
    gains: Gains | None = None,
) -> DetectionLoss:
    """Return the mean loss of raw `maps`, each (batch, anchors, rows, columns, 5 + classes).

    `boxes` (batch, n, 5): class, and centre, width and height as shares of the image; `counts` (batch,): how many of
    them are real. `anchors` and `strides` in pixels, one entry a map. An image without boxes learns objectness 0.
    Raises ModelError for shapes that don't fit and for a class the maps don't have.
    """
    _check_boxes(boxes, counts, maps[0])
    gains = gains or Gains()
    zero = torch.zeros((), device=maps[0].device)
    box, objectness, classes = zero, zero, zero
    for raw, shapes, stride, balance in zip(maps, anchors, strides, MAP_BALANCE, strict=True):
        rows, columns = raw.shape[2], raw.shape[3]
        targets = assign_targets(boxes, counts, shapes, (rows, columns), stride)
        parts = _map_loss(raw.float(), targets, torch.tensor(shapes, device=raw.device) / stride)
        box, objectness, classes = box + parts.box, objectness + balance * parts.objectness, classes + parts.classes
    pixels = maps[0].shape[2] * maps[0].shape[3] * strides[0] ** 2
    number = maps[0].shape[-1] - 5
    return DetectionLoss(
        gains.box * box,
        gains.objectness * (pixels / 640**2) * objectness,
        gains.classes * (number / 80) * classes,
    )


def _check_boxes(boxes: Tensor, counts: Tensor, raw: Tensor) -> None:
    check_shape("boxes", boxes, (raw.shape[0], "boxes", 5))
    check_shape("counts", counts, (raw.shape[0],))
    if torch.compiler.is_compiling() or boxes.device.type != "cpu" or isinstance(boxes, FakeTensor):
        return  # elsewhere a look would wait for the device; fake tensors have no values
    real = boxes[torch.arange(boxes.shape[1]) < counts[:, None]]
    wrong = real[(real[:, 0] < 0) | (real[:, 0] >= raw.shape[-1] - 5), 0]
    if wrong.numel():
        raise ModelError(
            "boxes has a class the model does not know", found=int(wrong[0]), wanted=f"0 to {raw.shape[-1] - 6}"
        )


def _map_loss(raw: Tensor, targets: MapTargets, anchors: Tensor) -> DetectionLoss:
    """Return the parts of one map, without gains. `anchors` (anchors, 2) in cells."""
    flat = raw.flatten(1, 3)  # (batch, all cells, 5 + classes)
    index = targets.cells.flatten(1)
    matched = flat.gather(1, index[..., None].expand(-1, -1, flat.shape[-1])).view(*targets.cells.shape, flat.shape[-1])
    weight = targets.valid.float()
    matches = weight.sum().clamp(min=1)

    reached = complete_iou(cxcywh_to_xyxy(_boxes(matched, anchors)), cxcywh_to_xyxy(targets.boxes))
    box = ((1 - reached) * weight).sum() / matches

    classes = torch.arange(raw.shape[-1] - 5, device=raw.device)
    one_hot = (targets.labels[:, :, None, None, None] == classes).float().expand_as(matched[..., 5:])
    wrong = F.binary_cross_entropy_with_logits(matched[..., 5:], one_hot, reduction="none").mean(-1)
    class_loss = (wrong * weight).sum() / matches

    # Where two boxes meet in one cell, it learns the better overlap: the order of the boxes plays no part.
    wanted = torch.zeros_like(flat[..., 4])
    overlap = (reached.detach().clamp(min=0) * weight).flatten(1)
    wanted = wanted.scatter_reduce(1, index, overlap, reduce="amax")
    return DetectionLoss(box, F.binary_cross_entropy_with_logits(flat[..., 4], wanted), class_loss)


def _boxes(matched: Tensor, anchors: Tensor) -> Tensor:
    """Return predicted boxes (..., anchors, 3, 4): centre from the cell's corner, width and height, in cells."""
    chance = matched[..., :4].sigmoid()
    return torch.cat((chance[..., :2] * 2 - 0.5, (chance[..., 2:] * 2).square() * anchors[:, None]), dim=-1)
