"""Detection: find boxes and their classes. Batches: `pixel_values`, `boxes` and `counts`.

`boxes` (batch, n, 5) float: class, and centre x, centre y, width, height as shares of the image; rows past `counts`
(batch,) int64 are padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from deepseek.errors import ConfigError, DataError
from deepseek.metrics.detection import AveragePrecision, Detections, Objects
from deepseek.nn.boxes import batched_nms, clip_boxes, cxcywh_to_xyxy
from deepseek.nn.detection_loss import DetectionLoss, Gains, detection_loss
from deepseek.tasks.task import Batch, Loss, LossSum


class Detector(Protocol):
    """A model with anchors whose raw maps can be decoded, as `deepseek.models.yolov5.YOLOv5`."""

    config: Any
    """With `anchors`: for each map a list of widths and heights in pixels."""
    strides: Sequence[int]

    def decode(self, outputs: Any) -> tuple[Tensor, Tensor]:
        """Return boxes (batch, n, 4), xyxy in pixels, and scores (batch, n, classes)."""
        ...


class Detection:
    """Boxes, objectness and classes of a detector with anchors, weighted by `gains`.

    Predictions need a score above `min_score`; of boxes of one class that overlap by more than `max_overlap` the best
    stays, and of an image at most `max_detections`. Suppression looks at the best `max_candidates`. Raises ConfigError
    for a share outside 0 to 1.
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
        for name, share in (("min_score", min_score), ("max_overlap", max_overlap)):
            if not 0 <= share <= 1:
                raise ConfigError(f"{name} is a share", found=share, wanted="0 to 1")
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
        """Return the three parts of the mean loss. Raises DataError for boxes that are no shares of the image."""
        return self._parts(cast(Detector, model), model(batch["pixel_values"]), batch)

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the mean loss."""
        return {"loss": mean_loss}

    def evaluator(self) -> DetectionEvaluator:
        """Return what measures the loss, mAP and recall; detections down to a score of 0.001 count, as is usual."""
        low = min(self.min_score, 0.001)
        return DetectionEvaluator(
            Detection(self.gains, low, self.max_overlap, self.max_detections, self.max_candidates)
        )

    def predict(self, model: nn.Module, inputs: Tensor) -> list[Detections]:
        """Return what is found in each image of `inputs` (batch, channels, height, width)."""
        with torch.inference_mode():
            return self._found(cast(Detector, model), model(inputs), inputs)

    def _parts(self, detector: Detector, maps: Any, batch: Batch) -> DetectionLoss:
        _check_boxes(batch)
        return detection_loss(
            maps, batch["boxes"], batch["counts"], detector.config.anchors, detector.strides, self.gains
        )

    def _found(self, detector: Detector, maps: Any, inputs: Tensor) -> list[Detections]:
        boxes, scores = detector.decode(maps)
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


class DetectionEvaluator:
    """Measures `loss`, `map50`, `map` (0.5:0.95), `recall50` and `recall`, from one pass through the model."""

    def __init__(self, task: Detection) -> None:
        self._task = task
        self._loss, self._precision = LossSum(), AveragePrecision()

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add a batch."""
        detector, task = cast(Detector, model), self._task
        maps = model(batch["pixel_values"])
        images = task.count(batch)
        self._loss.add(task._parts(detector, maps, batch).total * images, images)
        self._precision.update(task._found(detector, maps, batch["pixel_values"]), objects_of(batch))

    def result(self) -> dict[str, float]:
        """Return the five numbers. Raises DataError where no image has an object."""
        return {"loss": self._loss.mean(), **self._precision.result().report()}


def objects_of(batch: Batch) -> list[Objects]:
    """Return what is in each image of a batch, in pixels, on the CPU."""
    height, width = batch["pixel_values"].shape[-2:]
    scale = torch.tensor([width, height, width, height])
    images = zip(batch["boxes"].cpu(), batch["counts"].tolist(), strict=True)
    return [Objects(cxcywh_to_xyxy(rows[:n, 1:]).float() * scale, rows[:n, 0].long()) for rows, n in images]


def _check_boxes(batch: Batch) -> None:
    """Check the values of boxes in eager code, on a CPU only, where it costs no synchronisation."""
    if torch.compiler.is_compiling():
        return
    boxes, counts, images = batch["boxes"], batch["counts"], len(batch["pixel_values"])
    shapes_fit = boxes.dim() == 3 and boxes.shape[0] == images and boxes.shape[2] == 5 and counts.shape == (images,)
    if not shapes_fit or boxes.device.type != "cpu" or not images or isinstance(boxes, FakeTensor):
        return  # the loss refuses other shapes; a step on shapes alone (to reckon memory) has no values
    if int(counts.min()) < 0 or int(counts.max()) > boxes.shape[1]:
        raise DataError("counts go past the boxes", found=counts.tolist(), wanted=f"0 to {boxes.shape[1]}")
    real = boxes[torch.arange(boxes.shape[1]) < counts[:, None]]
    if real.numel() and not bool(((real[:, 1:] >= 0) & (real[:, 1:] <= 1)).all()):
        raise DataError(
            "boxes are shares of the image",
            found=f"{float(real[:, 1:].min()):.4g} to {float(real[:, 1:].max()):.4g}",
            wanted="0 to 1: centre x, centre y, width, height",
            fix="divide pixels by the image's width and height",
        )
