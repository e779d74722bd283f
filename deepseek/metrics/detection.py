"""How good a detector is: average precision and recall as COCO defines them, over all classes and for each.

A detection is right when its box overlaps a box of the image and class that no better-scored one has taken. Precision
is read at 101 recalls (0, 0.01, ..., 1) from its envelope; the mean over the thresholds 0.5, 0.55, ..., 0.95 is
"mAP 0.5:0.95". Not here: COCO's crowd regions and the split by size.
Source: Lin et al. 2014, "Microsoft COCO", arXiv:1405.0312, and https://cocodataset.org/#detection-eval.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deepseek.errors import DataError
from deepseek.nn.boxes import box_iou

Floats = NDArray[np.float64]
Marks = NDArray[np.bool_]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)


class Detections(NamedTuple):
    """What was found in an image, best first: `boxes` (n, 4) xyxy in pixels, `scores` (n,), `labels` (n,) int64."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


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


class AveragePrecision:
    """Collects what `result` makes scores of, image by image; boxes are matched at once and not kept.

    Of each class at most `max_detections` an image count, the best. `num_classes` None takes the highest class of the
    data as the last; means are over the classes that the images have, so they do not depend on it.
    """

    def __init__(self, num_classes: int | None = None, max_detections: int = 100) -> None:
        self.num_classes, self.max_detections = num_classes, max_detections
        self._matched: dict[int, list[tuple[Floats, Marks]]] = defaultdict(list)
        self._objects: dict[int, int] = defaultdict(int)

    def update(self, found: Sequence[Detections], wanted: Sequence[Objects]) -> None:
        """Add images. Raises DataError where their numbers differ, or an object has an unknown class."""
        if len(found) != len(wanted):
            raise DataError("each image needs its detections", found=len(found), wanted=len(wanted))
        self._check_classes(wanted)
        for mine, objects in zip(found, wanted, strict=True):
            mine, objects = Detections(*(part.cpu() for part in mine)), Objects(*(part.cpu() for part in objects))
            for label in objects.labels.tolist():
                self._objects[label] += 1
            for label in {*mine.labels.tolist(), *objects.labels.tolist()}:
                self._matched[label].append(self._match(mine, objects, label))

    def result(self) -> DetectionScores:
        """Return the scores over all images. Raises DataError when none had an object."""
        if not self._objects:
            raise DataError("there is nothing to evaluate", found="no object in any image", wanted="at least one")
        classes = max(self._objects) + 1 if self.num_classes is None else self.num_classes
        per_class = np.full((classes, len(IOU_THRESHOLDS)), np.nan)
        recall = per_class.copy()
        for label, objects in self._objects.items():
            scores = np.concatenate([scores for scores, _ in self._matched[label]])
            right = np.concatenate([right for _, right in self._matched[label]], axis=1)
            per_class[label], recall[label] = _average_precision(scores, right, objects)
        present = ~np.isnan(per_class[:, 0])
        return DetectionScores(float(per_class[present, 0].mean()), float(per_class[present].mean()), per_class, recall)

    def _check_classes(self, wanted: Sequence[Objects]) -> None:
        labels = [label for image in wanted for label in image.labels.tolist()]
        highest = max(labels, default=0) if self.num_classes is None else self.num_classes - 1
        if labels and (min(labels) < 0 or max(labels) > highest):
            raise DataError(
                "an object has an unknown class",
                found=f"{min(labels)} to {max(labels)}",
                wanted=f"0 to {highest}",
            )

    def _match(self, mine: Detections, objects: Objects, label: int) -> tuple[Floats, Marks]:
        """Return scores (n,) and which of them are right (thresholds, n) of one class and image, best first."""
        chosen = mine.labels == label
        order = mine.scores[chosen].argsort(descending=True, stable=True)[: self.max_detections]
        boxes, scores = mine.boxes[chosen][order].double(), mine.scores[chosen][order].double()
        overlaps = box_iou(boxes, objects.boxes[objects.labels == label].double())
        return scores.numpy(), _match(overlaps.numpy())


def score_detections(
    found: Sequence[Detections], wanted: Sequence[Objects], num_classes: int, max_detections: int = 100
) -> DetectionScores:
    """Return the scores of `found` against `wanted`, image by image; see `AveragePrecision`.

    Raises DataError where the two have different numbers of images, no image has an object, or an object's class is
    none of 0 to num_classes - 1.
    """
    precision = AveragePrecision(num_classes, max_detections)
    precision.update(found, wanted)
    return precision.result()


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
