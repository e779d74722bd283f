"""Image classification: one class for each image. Batches: `pixel_values` and `labels`.

`labels` is int64 (batch,), -100 for an image that does not count; or, for mixed images, floats (batch, num_labels):
each class's share. Not here: several classes at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.errors import ConfigError, DataError
from deepseek.nn.losses import IGNORE
from deepseek.tasks.task import Batch, Loss


class ImageClassification:
    """Cross-entropy in nats, summed over the images.

    `label_smoothing` is the share of each target that is spread over all classes (Szegedy et al. 2015,
    arXiv:1512.00567, section 7). Raises ConfigError where it is not in [0, 1).
    """

    name = "image_classification"

    def __init__(self, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise ConfigError("label_smoothing is a share", found=label_smoothing, wanted="0 or more, below 1")
        self.label_smoothing = label_smoothing

    def count(self, batch: Batch) -> int:
        """Return the number of images that have a label."""
        labels = batch["labels"]
        return len(labels) if labels.is_floating_point() else int(torch.count_nonzero(labels != IGNORE))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the summed loss of a batch and the number of labels. Raises DataError for labels that do not fit."""
        return Loss(self.loss_sum(model, batch), self.count(batch))

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss alone."""
        logits, labels = model(batch["pixel_values"]), batch["labels"]
        _check_labels(labels, logits)
        if labels.is_floating_point():
            labels = labels.float()
        return F.cross_entropy(
            logits.float(), labels, ignore_index=IGNORE, reduction="sum", label_smoothing=self.label_smoothing
        )

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the mean loss in nats; `count_correct` has what an accuracy needs."""
        return {"loss": mean_loss}

    def predict(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return probabilities (batch, num_labels), float32, for `inputs` (batch, channels, height, width)."""
        with torch.inference_mode():
            logits: Tensor = model(inputs)
            return logits.float().softmax(-1)


def count_correct(scores: Tensor, labels: Tensor, top: int = 1) -> int:
    """Return how many `labels` (batch,) are among the `top` highest `scores` (batch, num_labels).

    Labels of -100 never are. Divide by `ImageClassification.count` for the accuracy.
    """
    best = scores.topk(min(top, scores.shape[-1]), dim=-1).indices
    return int((best == labels[:, None]).any(-1).sum())


def _check_labels(labels: Tensor, logits: Tensor) -> None:
    """Check labels in eager code; their range on a CPU only, where it costs no synchronisation."""
    if torch.compiler.is_compiling():
        return
    wanted = logits.shape if labels.is_floating_point() else logits.shape[:1]
    if labels.shape != wanted:
        raise DataError("labels have the wrong shape", found=tuple(labels.shape), wanted=tuple(wanted))
    if labels.is_floating_point() or labels.device.type != "cpu":
        return
    if labels.dtype != torch.int64:
        raise DataError("labels must be class numbers", found=labels.dtype, wanted="torch.int64")
    wrong = labels[(labels != IGNORE) & ((labels < 0) | (labels >= logits.shape[1]))]
    if len(wrong):
        raise DataError(
            "labels have an unknown class",
            found=int(wrong[0]),
            wanted=f"0 to {logits.shape[1] - 1}, or {IGNORE} for none",
            fix="build the model with num_labels as large as the data's",
        )
