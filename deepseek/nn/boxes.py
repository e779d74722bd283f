"""Boxes: conversions, overlap (IoU, CIoU) and non-maximum suppression, in plain tensor operations.

A box is four numbers: `xyxy` (left, top, right, bottom) or `cxcywh` (centre, width, height). Not here: how boxes follow
an image into a letterbox (`letterbox.py`), and which prediction learns which box (`yolo_targets.py`).
Sources: CIoU, Zheng et al. 2020, arXiv:1911.08287; suppression as a fixed point, Zheng et al. 2021, arXiv:2005.03572.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepseek.errors import ModelError

EPSILON = 1e-7
"""Keeps areas and lengths that are divided by above 0, so that a box without area overlaps nothing."""

BLOCK = 1024
"""Boxes that `nms` compares with each other at once: memory grows with n * BLOCK, not with n * n."""


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Return boxes (..., 4) given by centre, width and height as left, top, right, bottom."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Return boxes (..., 4) given by left, top, right, bottom as centre, width and height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def clip_boxes(boxes: Tensor, height: float, width: float) -> Tensor:
    """Return xyxy boxes (..., 4) cut at the edges of an image."""
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """Return the areas (...) of xyxy boxes (..., 4); a box turned inside out has none."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the overlap (...) of each xyxy box in `first` (..., 4) with its partner in `second`, 0 to 1.

    The two broadcast. 16-bit boxes are compared in float32: an area of pixels is past what they can hold.
    """
    first, second = _wide(first), _wide(second)
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    sides = (high - low).clamp(min=0)
    shared = sides[..., 0] * sides[..., 1]
    return shared / (box_area(first) + box_area(second) - shared).clamp(min=EPSILON)


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the overlaps (..., n, m) of all xyxy boxes in `first` (..., n, 4) with all in `second` (..., m, 4)."""
    return paired_iou(first[..., :, None, :], second[..., None, :, :])


def complete_iou(found: Tensor, wanted: Tensor) -> Tensor:
    """Return CIoU (...) of paired xyxy boxes (..., 4), at most 1: IoU - distance**2 / diagonal**2 - alpha * v.

    `distance` is between the centres, `diagonal` that of the smallest box around both, v the squared difference of the
    aspect angles times 4 / pi**2, and alpha = v / (1 - IoU + v), which the paper takes as constant in the gradient.
    """
    found, wanted = _wide(found), _wide(wanted)
    iou = paired_iou(found, wanted)
    around = torch.maximum(found[..., 2:], wanted[..., 2:]) - torch.minimum(found[..., :2], wanted[..., :2])
    apart = (found[..., :2] + found[..., 2:] - wanted[..., :2] - wanted[..., 2:]) / 2
    distance = apart.square().sum(-1) / (around.square().sum(-1) + EPSILON)
    v = (4 / math.pi**2) * (_aspect_angle(wanted) - _aspect_angle(found)).square()
    alpha = (v / (1 - iou + v + EPSILON)).detach()
    return iou - distance - alpha * v


def _aspect_angle(boxes: Tensor) -> Tensor:
    sides = boxes[..., 2:] - boxes[..., :2]
    return torch.atan(sides[..., 0] / (sides[..., 1] + EPSILON))


def settled(overlapping: Tensor, rounds: int | None = None) -> Tensor:
    """Return which boxes (..., n) greedy suppression keeps, from `overlapping` (..., n, n), best box first.

    A box goes where a better one that stays overlaps it. Each round decides all boxes at once from the round before;
    the first k boxes are final after k rounds, and mostly all are after three or four. None: until nothing changes.
    A fixed even number of `rounds` has no data-dependent step, so it exports; what it leaves undecided it keeps.
    """
    if rounds is not None and rounds % 2:
        raise ModelError("an odd number of rounds may lose boxes", found=rounds, wanted=f"an even one, as {rounds + 1}")
    better = torch.triu(overlapping, diagonal=1)
    kept = overlapping.new_ones(overlapping.shape[:-1])
    for _ in range(better.shape[-1] + 1 if rounds is None else rounds):
        before = kept
        kept = ~(better & before[..., :, None]).any(dim=-2)
        if rounds is None and torch.equal(kept, before):
            break
    return kept


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices (kept,) of the xyxy boxes (n, 4) that no better one overlaps by more than `iou_threshold`.

    Best score (n,) first; of equal scores the earlier box is the better one.
    """
    return batched_nms(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Return what `nms` returns where only boxes of one group (n,) of int64 (class, or image and class) compete."""
    order = scores.argsort(descending=True, stable=True)
    boxes, groups = boxes[order], groups[order]
    kept = torch.zeros(0, dtype=torch.int64, device=boxes.device)
    for start in range(0, len(order), BLOCK):
        block = torch.arange(start, min(start + BLOCK, len(order)), device=boxes.device)
        free = ~_overlapping(boxes, groups, kept, block, iou_threshold).any(dim=0)
        block = block[free]
        kept = torch.cat((kept, block[settled(_overlapping(boxes, groups, block, block, iou_threshold))]))
    return order[kept]


def _overlapping(boxes: Tensor, groups: Tensor, first: Tensor, second: Tensor, iou_threshold: float) -> Tensor:
    same = groups[first][:, None] == groups[second][None, :]
    return same & (box_iou(boxes[first], boxes[second]) > iou_threshold)


def _wide(boxes: Tensor) -> Tensor:
    return boxes if boxes.dtype == torch.float64 else boxes.float()
