"""Classification: one class for each text, row of a table, or whatever the model takes.

Batches: the model's inputs under the names of its forward method (`input_ids` and `attention_mask` of a BERT or LSTM,
`numeric` and `categorical` of an FTTransformer, `features` of an MLP), and `labels`: int64 (batch,), -100 for a sample
that does not count; or, for mixed samples, floats (batch, num_labels): each class's share. A model with one output
answers a yes-or-no question, with labels 0 and 1. Not here: several classes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.errors import DataError
from deepseek.metrics.calibration import CalibrationError
from deepseek.metrics.classification import Accuracy, score_classes
from deepseek.metrics.confusion import ConfusionMatrix
from deepseek.metrics.roc import RocAuc
from deepseek.nn.losses import IGNORE, check_smoothing, cross_entropy_sum
from deepseek.tasks.inputs import answer_to, target
from deepseek.tasks.task import Batch, Loss, LossSum

_MANY_CLASSES = 5  # more than these, and the share of labels among the best five is measured too
_MATRIX_CLASSES = 2048  # more, and there is no matrix of all against all


class Classifier:
    """What tasks that pick one class share: cross-entropy in nats, summed over the samples. They say what `answer` is.

    `label_smoothing` is the share of each target that is spread over all classes (Szegedy et al. 2015,
    arXiv:1512.00567, section 7), in training only: evaluation measures plain cross-entropy. Raises ConfigError where
    it is not in [0, 1).
    """

    name: str

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = check_smoothing(label_smoothing)

    @staticmethod
    def answer(model: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return the model's logits (..., num_labels) for a batch, or for one tensor."""
        raise TypeError("Classifier only serves as a base; use Classification or ImageClassification")

    def count(self, batch: Batch) -> int:
        """Return the number of samples that have a label."""
        return count_labels(target(batch))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the summed loss of a batch and the number of labels. Raises DataError for labels that do not fit."""
        return Loss(self.loss_sum(model, batch), self.count(batch))

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss alone."""
        smoothing = self.label_smoothing if model.training else 0.0
        return classification_loss_sum(self.answer(model, batch), target(batch), smoothing)

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the mean loss in nats."""
        return {"loss": mean_loss}

    def evaluator(self) -> ClassificationEvaluator:
        """Return what measures the loss, accuracy, macro-F1 and calibration; see `ClassificationEvaluator`."""
        return ClassificationEvaluator(self.answer)

    def predict(self, model: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return probabilities (batch, num_labels), float32, for a tensor or for a batch of the model's inputs.

        A model with one output gives (batch, 2): no and yes.
        """
        with torch.inference_mode():
            return probabilities(self.answer(model, inputs))


class Classification(Classifier):
    """One class for each sample of whatever the model takes, by the names of its forward method."""

    name = "classification"

    @staticmethod
    def answer(model: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return the logits for one tensor, or for those of a batch that the model has names for."""
        logits: Tensor = answer_to(model, inputs)
        return logits


class ClassificationEvaluator:
    """Measures, from one pass: `loss`, `accuracy`, `macro_f1`, `calibration_error`; `top5_accuracy` for more than five
    classes, `f1` (of class 1) and `roc_auc` for two.

    Of mixed samples the class with the largest share counts as the right one. `forward` gives a batch's logits.
    """

    def __init__(self, forward: Callable[[nn.Module, Batch], Tensor]) -> None:
        self._forward = forward
        self._loss, self._accuracy, self._best_five = LossSum(), Accuracy(), Accuracy(top=5)
        self._calibration, self._curve = CalibrationError(), RocAuc()
        self._matrix: ConfusionMatrix | None = None
        self._classes = 0

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add a batch. Raises DataError for labels that do not fit."""
        logits, labels = self._forward(model, batch), target(batch)
        self._loss.add(classification_loss_sum(logits, labels), count_labels(labels))
        chances = probabilities(logits).flatten(0, -2)
        labels = (labels.argmax(-1) if labels.is_floating_point() else labels).flatten()
        self._classes = chances.shape[1]
        self._accuracy.update(chances, labels)
        self._calibration.update(chances, labels)
        if self._classes > _MANY_CLASSES:
            self._best_five.update(chances, labels)
        if self._classes == 2:
            known = labels != IGNORE
            self._curve.update(chances[known, 1], labels[known])
        if self._classes <= _MATRIX_CLASSES:
            self._matrix = self._matrix or ConfusionMatrix(self._classes)
            self._matrix.update(chances.argmax(-1), labels)

    def result(self) -> dict[str, float]:
        """Return the numbers. Raises DataError when no sample had a label."""
        found = {"loss": self._loss.mean(), "accuracy": self._accuracy.result()}
        if self._classes > _MANY_CLASSES:
            found["top5_accuracy"] = self._best_five.result()
        if self._matrix is not None:
            counts = self._matrix.result()
            scores = score_classes(counts)
            found["macro_f1"] = scores.macro_f1
            if self._classes == 2 and bool(counts[1].any()):
                found["f1"] = float(scores.f1[1])
                if bool(counts[0].any()):  # a curve needs both answers
                    found["roc_auc"] = self._curve.result()
        return {**found, "calibration_error": self._calibration.result()}


def classification_loss_sum(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the summed cross-entropy of `logits` (..., num_labels) in float32, a scalar.

    `labels` (...) int64 or, of the logits' shape, floats. One output is a yes-or-no question. Raises DataError for
    labels that do not fit.
    """
    check_labels(labels, logits)
    if logits.shape[-1] == 1:
        return _yes_or_no_loss_sum(logits.squeeze(-1).float(), labels, label_smoothing)
    flat = logits.flatten(0, -2)
    if labels.is_floating_point():
        shares = labels.flatten(0, -2).float()
        return F.cross_entropy(flat.float(), shares, reduction="sum", label_smoothing=label_smoothing)
    return cross_entropy_sum(flat, labels.flatten(), label_smoothing)


def _yes_or_no_loss_sum(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    if labels.is_floating_point():
        known, wanted = torch.ones_like(logits, dtype=torch.bool), labels.squeeze(-1).float()
    else:
        known, wanted = labels != IGNORE, (labels == 1).float()
    wanted = wanted * (1 - label_smoothing) + label_smoothing / 2
    losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return torch.where(known, losses, 0).sum()


def probabilities(logits: Tensor) -> Tensor:
    """Return the classes' probabilities (..., num_labels) in float32; of one output those of no and yes (..., 2)."""
    logits = logits.float()
    if logits.shape[-1] > 1:
        return logits.softmax(-1)
    yes = logits.sigmoid()
    return torch.cat([1 - yes, yes], dim=-1)


def count_labels(labels: Tensor) -> int:
    """Return how many labels count: those that are not -100, all rows of shares."""
    if labels.is_floating_point():
        return labels.shape[:-1].numel()
    return int(torch.count_nonzero(labels != IGNORE))


def check_labels(labels: Tensor, logits: Tensor) -> None:
    """Check labels in eager code; their range on a CPU only, where it costs no synchronisation. Raises DataError."""
    if torch.compiler.is_compiling():
        return
    wanted = logits.shape if labels.is_floating_point() else logits.shape[:-1]
    if labels.shape != wanted:
        raise DataError("labels have the wrong shape", found=tuple(labels.shape), wanted=tuple(wanted))
    if labels.is_floating_point() or labels.device.type != "cpu":
        return
    if labels.dtype != torch.int64:
        raise DataError("labels must be class numbers", found=labels.dtype, wanted="torch.int64")
    classes = max(logits.shape[-1], 2)
    wrong = labels[(labels != IGNORE) & ((labels < 0) | (labels >= classes))]
    if len(wrong):
        raise DataError(
            "labels have an unknown class",
            found=int(wrong[0]),
            wanted=f"0 to {classes - 1}, or {IGNORE} for none",
            fix="build the model with num_labels as large as the data's",
        )
