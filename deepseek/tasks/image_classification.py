"""Image classification: one class for each image. Batches: `pixel_values` and `labels`.

`labels` is int64 (batch,), -100 for an image that does not count; or, for mixed images, floats (batch, num_labels):
each class's share. The loss is that of `deepseek.tasks.classification`. Not here: several classes at once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepseek.metrics.classification import count_correct as count_correct
from deepseek.nn.losses import check_smoothing
from deepseek.tasks.classification import (
    ClassificationEvaluator,
    classification_loss_sum,
    count_labels,
    probabilities,
)
from deepseek.tasks.inputs import target
from deepseek.tasks.task import Batch, Loss


class ImageClassification:
    """Cross-entropy in nats, summed over the images.

    `label_smoothing` is the share of each target that is spread over all classes, in training only. Raises ConfigError
    where it is not in [0, 1).
    """

    name = "image_classification"

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = check_smoothing(label_smoothing)

    def count(self, batch: Batch) -> int:
        """Return the number of images that have a label."""
        return count_labels(target(batch))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the summed loss of a batch and the number of labels. Raises DataError for labels that do not fit."""
        return Loss(self.loss_sum(model, batch), self.count(batch))

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss alone."""
        smoothing = self.label_smoothing if model.training else 0.0
        return classification_loss_sum(_logits(model, batch), target(batch), smoothing)

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the mean loss in nats."""
        return {"loss": mean_loss}

    def evaluator(self) -> ClassificationEvaluator:
        """Return what measures the loss, accuracy, top-5 accuracy, macro-F1 and calibration."""
        return ClassificationEvaluator(_logits)

    def predict(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return probabilities (batch, num_labels), float32, for `inputs` (batch, channels, height, width)."""
        with torch.inference_mode():
            return probabilities(model(inputs))


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    logits: Tensor = model(batch["pixel_values"])
    return logits
