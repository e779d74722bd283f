"""Detection: find boxes and their classes. Batches: `pixel_values`, `boxes` and `counts`.

`boxes` (batch, n, 5) float: class, and centre x, centre y, width, height as shares of the image; rows past `counts`
(batch,) int64 are padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from deepseek.nn.boxes import batched_nms, clip_boxes
from deepseek.nn.detection_loss import DetectionLoss, Gains, detection_loss
from deepseek.tasks.task import Batch, Loss


class Detector(Protocol):
    """A model with anchors whose raw maps can be decoded, as `deepseek.models.yolov5.YOLOv5`."""

    config: Any
    """With `anchors`: for each map a list of widths and heights in pixels."""
    strides: Sequence[int]

    def decode(self, outputs: Any) -> tuple[Tensor, Tensor]:
        """Return boxes (batch, n, 4), xyxy in pixels, and scores (batch, n, classes)."""
        ...


class Detections(NamedTuple):
    """What was found in an image, best first: `boxes` (n, 4) xyxy in pixels, `scores` (n,), `labels` (n,) int64."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Detection:
    """Boxes, objectness and classes of a detector with anchors, weighted by `gains`.

    Predictions need a score above `min_score`; of boxes of one class that overlap by more than `max_overlap` the best
    stays, and of an image at most `max_detections`. Suppression looks at the best `max_candidates`.
    """

    name = "detection"

    def __init__(
        self,
        gains: Gains | None = None,
        min_score: float = 0.25,
        max_overlap: float = 0.45,
        max_detections: int = 300,
        max_candidates: int = 10000,
    ) -> None:
        self.gains = gains or Gains()
        self.min_score, self.max_overlap = min_score, max_overlap
        self.max_detections, self.max_candidates = max_detections, max_candidates

    def count(self, batch: Batch) -> int:
        """Return the number of images."""
        return len(batch["pixel_values"])

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the mean loss of the batch times its images, and their number."""
        return Loss(self.loss_sum(model, batch), self.count(batch))

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss alone."""
        return self.parts(model, batch).total * len(batch["pixel_values"])

    def parts(self, model: nn.Module, batch: Batch) -> DetectionLoss:
        """Return the three parts of the mean loss."""
        detector = cast(Detector, model)
        maps = model(batch["pixel_values"])
        return detection_loss(
            maps, batch["boxes"], batch["counts"], detector.config.anchors, detector.strides, self.gains
        )

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the mean loss; average precision comes from `deepseek.evaluate.detection`."""
        return {"loss": mean_loss}

    def predict(self, model: nn.Module, inputs: Tensor) -> list[Detections]:
        """Return what is found in each image of `inputs` (batch, channels, height, width)."""
        with torch.inference_mode():
            boxes, scores = cast(Detector, model).decode(model(inputs))
            height, width = inputs.shape[-2:]
            pairs = zip(clip_boxes(boxes, height, width), scores, strict=True)
            return [self._select(*pair) for pair in pairs]

    def _select(self, boxes: Tensor, scores: Tensor) -> Detections:
        """Return the detections of one image; a box may count for several classes."""
        box, label = (scores > self.min_score).nonzero(as_tuple=True)
        score = scores[box, label]
        if len(score) > self.max_candidates:
            score, best = score.topk(self.max_candidates)
            box, label = box[best], label[best]
        kept = batched_nms(boxes[box], score, label, self.max_overlap)[: self.max_detections]
        return Detections(boxes[box[kept]], score[kept], label[kept])
