"""How good a detector is: average precision and recall as COCO defines them, over all classes and for each.

A detection is right when its box overlaps a box of the image and class that no better-scored one has taken. Precision
is read at 101 recalls (0, 0.01, ..., 1) from its envelope; the mean over the thresholds 0.5, 0.55, ..., 0.95 is
"mAP 0.5:0.95". Not here: COCO's crowd regions and the split by size.
Source: Lin et al. 2014, "Microsoft COCO", arXiv:1405.0312, and https://cocodataset.org/#detection-eval.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepseek.errors import DataError
from deepseek.nn.boxes import box_iou, cxcywh_to_xyxy
from deepseek.tasks.detection import Detection, Detections
from deepseek.tasks.task import Batch, to_device

Floats = NDArray[np.float64]
Marks = NDArray[np.bool_]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)


class Objects(NamedTuple):
    """What is really in an image: `boxes` (n, 4), xyxy in pixels, and `labels` (n,), int64."""

    boxes: Tensor
    labels: Tensor


class DetectionScores(NamedTuple):
    """All 0 to 1; a class that no image has is NaN in `per_class` and `recall`, and in no mean."""

    map50: float
    map: float
    """The mean over the ten thresholds, "mAP 0.5:0.95"."""
    per_class: Floats
    """(classes, 10): average precision at each threshold."""
    recall: Floats
    """(classes, 10): share of the objects found at each threshold."""

    def report(self) -> dict[str, float]:
        """Return the four numbers of a report: `map50`, `map`, `recall50`, `recall` (means over the classes)."""
        recall = self.recall[~np.isnan(self.recall[:, 0])]
        return {
            "map50": self.map50,
            "map": self.map,
            "recall50": float(recall[:, 0].mean()),
            "recall": float(recall.mean()),
        }


def score_detections(
    found: Sequence[Detections], wanted: Sequence[Objects], num_classes: int, max_detections: int = 100
) -> DetectionScores:
    """Return the scores of `found` against `wanted`, image by image.

    Of each class at most `max_detections` an image count, the best. Raises DataError where the two have different
    numbers of images, no image has an object, or an object's class is none of 0 to num_classes - 1.
    """
    if len(found) != len(wanted):
        raise DataError("each image needs its detections", found=len(found), wanted=len(wanted))
    if not any(len(image.labels) for image in wanted):
        raise DataError("there is nothing to evaluate", found="no object in any image", wanted="at least one")
    labels = torch.cat([image.labels for image in wanted])
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise DataError(
            "an object has an unknown class",
            found=f"{int(labels.min())} to {int(labels.max())}",
            wanted=f"0 to {num_classes - 1}",
        )
    matched = _matches_by_class(found, wanted, max_detections)
    objects = labels.bincount(minlength=num_classes).tolist()
    per_class = np.full((num_classes, len(IOU_THRESHOLDS)), np.nan)
    recall = per_class.copy()
    for label in range(num_classes):
        if objects[label]:
            scores = np.concatenate([scores for scores, _ in matched[label]])
            right = np.concatenate([right for _, right in matched[label]], axis=1)
            per_class[label], recall[label] = _average_precision(scores, right, objects[label])
    present = ~np.isnan(per_class[:, 0])
    return DetectionScores(float(per_class[present, 0].mean()), float(per_class[present].mean()), per_class, recall)


def evaluate_detection(
    model: nn.Module,
    batches: Iterable[Batch],
    num_classes: int,
    task: Detection | None = None,
    device: torch.device | None = None,
) -> DetectionScores:
    """Return the scores of `model` in eval mode on batches as the task `detection` takes them.

    Without a `task`, all detections of a score above 0.001 count, as is usual for average precision. Raises DataError
    where no batch has an object.
    """
    task = task or Detection(min_score=0.001)
    found: list[Detections] = []
    wanted: list[Objects] = []
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            moved: Any = batch if device is None else to_device(batch, device)
            found += [
                Detections(*(part.cpu() for part in image)) for image in task.predict(model, moved["pixel_values"])
            ]
            wanted += _objects(batch)
    finally:
        model.train(was_training)
    return score_detections(found, wanted, num_classes)


def _objects(batch: Batch) -> list[Objects]:
    height, width = batch["pixel_values"].shape[-2:]
    scale = torch.tensor([width, height, width, height])
    images = zip(batch["boxes"].cpu(), batch["counts"].tolist(), strict=True)
    return [Objects(cxcywh_to_xyxy(rows[:n, 1:]).float() * scale, rows[:n, 0].long()) for rows, n in images]


def _matches_by_class(
    found: Sequence[Detections], wanted: Sequence[Objects], limit: int
) -> dict[int, list[tuple[Floats, Marks]]]:
    """Return scores (n,) and which of them are right (thresholds, n) for each class, image by image, best first."""
    matched: dict[int, list[tuple[Floats, Marks]]] = defaultdict(list)
    for mine, objects in zip(found, wanted, strict=True):
        for label in {*mine.labels.tolist(), *objects.labels.tolist()}:
            chosen = mine.labels == label
            order = mine.scores[chosen].argsort(descending=True, stable=True)[:limit]
            boxes, scores = mine.boxes[chosen][order].double(), mine.scores[chosen][order].double()
            overlaps = box_iou(boxes, objects.boxes[objects.labels == label].double())
            matched[label].append((scores.numpy(), _match(overlaps.numpy())))
    return matched


def _match(overlaps: Floats) -> Marks:
    """Return which detections are right at each threshold (thresholds, n), from overlaps (n, objects), best first.

    Each in turn takes the free object that it overlaps most.
    """
    right = np.zeros((len(IOU_THRESHOLDS), len(overlaps)), dtype=np.bool_)
    if overlaps.shape[1] == 0:
        return right
    rows = np.arange(len(IOU_THRESHOLDS))
    free = np.ones((len(rows), overlaps.shape[1]), dtype=np.bool_)
    for number, overlap in enumerate(overlaps):
        open_overlap = np.where(free, overlap, -1.0)
        choice = open_overlap.argmax(axis=1)
        right[:, number] = open_overlap[rows, choice] >= IOU_THRESHOLDS
        free[rows, choice] &= ~right[:, number]
    return right


def _average_precision(scores: Floats, right: Marks, objects: int) -> tuple[Floats, Floats]:
    """Return average precision and recall (thresholds,) of one class, from all images' detections."""
    right = right[:, np.argsort(-scores, kind="stable")]
    hits = right.cumsum(axis=1)
    if hits.shape[1] == 0:
        return np.zeros(len(hits)), np.zeros(len(hits))
    recall = hits / objects
    precision = hits / np.arange(1, hits.shape[1] + 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    average = np.zeros(len(hits))
    for row in range(len(hits)):
        first = np.searchsorted(recall[row], RECALLS, side="left")  # where a recall is first reached
        average[row] = np.append(envelope[row], 0.0)[first].mean()
    return average, recall[:, -1]
