"""Average precision against a plain loop over COCO's definition, and by cases that can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from deepseek.errors import DataError
from deepseek.metrics.detection import Detections, DetectionScores, Objects, score_detections
from deepseek.nn.boxes import cxcywh_to_xyxy


def overlap(first: list[float], second: list[float]) -> float:
    wide = min(first[2], second[2]) - max(first[0], second[0])
    high = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(wide, 0.0) * max(high, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (areas - shared)


def average_precision(
    found: list[Detections], wanted: list[Objects], label: int, threshold: float, limit: int = 100
) -> tuple[float, float]:
    """One class at one threshold, in loops; returns average precision and recall."""
    marks: list[tuple[float, bool]] = []
    objects = 0
    for image, truth in zip(found, wanted, strict=True):
        boxes = [box for box, name in zip(truth.boxes.tolist(), truth.labels.tolist(), strict=True) if name == label]
        objects += len(boxes)
        mine = [
            (score, box)
            for box, score, name in zip(image.boxes.tolist(), image.scores.tolist(), image.labels.tolist(), strict=True)
            if name == label
        ]
        mine.sort(key=lambda pair: -pair[0])
        taken: set[int] = set()
        for score, box in mine[:limit]:
            free = [(overlap(box, other), number) for number, other in enumerate(boxes) if number not in taken]
            best = max(free, default=(0.0, -1))
            marks.append((score, best[0] >= threshold))
            if best[0] >= threshold:
                taken.add(best[1])
    marks.sort(key=lambda mark: -mark[0])
    curve, right = [], 0
    for number, (_, hit) in enumerate(marks, start=1):
        right += hit
        curve.append((right / objects, right / number))
    total = 0.0
    for step in range(101):
        total += max((precision for recall, precision in curve if recall >= step / 100 - 1e-12), default=0.0)
    return total / 101, right / objects


def random_case(images: int, classes: int, generator: torch.Generator) -> tuple[list[Detections], list[Objects]]:
    """Objects, and detections that are some of them shifted, and some noise."""
    found, wanted = [], []
    for _ in range(images):
        n = int(torch.randint(0, 6, (), generator=generator))
        boxes = torch.cat(
            (torch.rand(n, 2, generator=generator) * 60 + 20, torch.rand(n, 2, generator=generator) * 30 + 5), dim=1
        )
        labels = torch.randint(classes, (n,), generator=generator)
        wanted.append(Objects(cxcywh_to_xyxy(boxes), labels))
        copies = boxes.repeat(3, 1) + torch.randn(3 * n, 4, generator=generator).clamp(-2, 2)
        noise = torch.rand(4, 4, generator=generator) * 40 + 5
        every = cxcywh_to_xyxy(torch.cat((copies, noise)))
        names = torch.cat((labels.repeat(3), torch.randint(classes, (4,), generator=generator)))
        found.append(Detections(every, torch.rand(len(every), generator=generator), names))
    return found, wanted


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_the_loop(seed: int) -> None:
    found, wanted = random_case(images=7, classes=3, generator=torch.Generator().manual_seed(seed))
    limit = 100 if seed else 2
    scores = score_detections(found, wanted, num_classes=3, max_detections=limit)
    for label in range(3):
        for column in range(10):
            loop = average_precision(found, wanted, label, 0.5 + 0.05 * column, limit)
            assert (scores.per_class[label, column], scores.recall[label, column]) == pytest.approx(loop, abs=1e-9)
    assert scores.map50 == pytest.approx(scores.per_class[:, 0].mean())
    assert scores.map == pytest.approx(scores.per_class.mean())
    assert scores.report()["recall"] == pytest.approx(scores.recall.mean())


def one(boxes: list[list[float]], scores: list[float]) -> Detections:
    return Detections(
        torch.tensor(boxes).view(-1, 4), torch.tensor(scores), torch.zeros(len(scores), dtype=torch.int64)
    )


def objects(*boxes: list[float]) -> Objects:
    return Objects(torch.tensor(boxes).view(-1, 4), torch.zeros(len(boxes), dtype=torch.int64))


A, B, FAR = [0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0], [50.0, 50.0, 60.0, 60.0]


def score(found: Detections, wanted: Objects) -> DetectionScores:
    return score_detections([found], [wanted], 1)


def test_cases_worked_out_by_hand() -> None:
    perfect = score(one([A, B], [0.9, 0.8]), objects(A, B))
    assert (perfect.map50, perfect.map) == (1.0, 1.0)
    assert score(one([], []), objects(A)).report() == {"map50": 0.0, "map": 0.0, "recall50": 0.0, "recall": 0.0}
    half = score(one([A], [0.9]), objects(A, B))
    assert half.map50 == pytest.approx(51 / 101)  # precision 1 up to recall 0.5
    late = score(one([FAR, A], [0.9, 0.8]), objects(A))
    assert late.map50 == pytest.approx(0.5)  # the envelope at every recall is 1 / 2
    twice = score(one([A, A, B], [0.9, 0.8, 0.7]), objects(A, B))
    assert twice.map50 == pytest.approx((51 + 50 * 2 / 3) / 101)  # the second A is wrong
    shifted = score(one([[0.0, 0.0, 10.0, 7.5]], [0.9]), objects(A))  # overlaps by 0.75: right at six thresholds
    assert (shifted.map50, shifted.map) == (1.0, pytest.approx(0.6))


def test_a_class_that_is_nowhere_is_in_no_mean_and_one_that_is_only_predicted_neither() -> None:
    found = one([A, FAR], [0.9, 0.8])._replace(labels=torch.tensor([0, 2]))
    scores = score_detections([found], [objects(A)], 3)
    assert scores.map50 == 1.0 and np.isnan(scores.per_class[1:]).all() and np.isnan(scores.recall[2, 0])
    assert not any(math.isnan(value) for value in scores.report().values())


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(DataError, match="each image needs its detections"):
        score_detections([], [objects(A)], 1)
    with pytest.raises(DataError, match="no object in any image"):
        score_detections([one([A], [0.9])], [objects()], 1)
    unknown = objects(A)._replace(labels=torch.tensor([1]))
    with pytest.raises(DataError, match="0 to 0"):
        score_detections([one([A], [0.9])], [unknown], 1)
