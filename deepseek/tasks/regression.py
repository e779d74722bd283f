"""Regression: values for each sample. Batches: the model's inputs under their names, and `labels`.

`labels` are floats (batch,) or (batch, values), in the data's own unit; NaN where a value is not known. The model
gives (batch, values), or (batch,) for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.errors import ConfigError, DataError
from deepseek.metrics.regression import RegressionErrors
from deepseek.tasks.inputs import answer_to, call_model, target
from deepseek.tasks.task import Batch, Loss, LossSum

LossName = Literal["mse", "l1", "huber"]


class Regression:
    """Squared ("mse"), absolute ("l1") or Huber's error, summed over all known values.

    The model learns (label - shift) / scale, and so does the loss count; set them to the mean and the deviation of the
    training labels. `delta`, in these scaled units, is where Huber's error turns from a square to a line (Huber 1964,
    doi:10.1214/aoms/1177703732). Predictions and metrics are in the data's unit. Raises ConfigError.
    """

    name = "regression"

    def __init__(self, loss: LossName = "mse", delta: float = 1.0, shift: float = 0.0, scale: float = 1.0) -> None:
        if loss not in get_args(LossName):
            raise ConfigError("unknown loss", found=repr(loss), wanted=", ".join(map(repr, get_args(LossName))))
        for name, value in (("delta", delta), ("scale", scale)):
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name} is too small or no number", found=value, wanted="above 0")
        self.loss_name, self.delta, self.shift, self.scale = loss, delta, shift, scale

    def count(self, batch: Batch) -> int:
        """Return the number of known values."""
        return int(torch.count_nonzero(~torch.isnan(target(batch))))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the summed loss and the number of known values. Raises DataError for labels that do not fit."""
        return Loss(self.loss_sum(model, batch), self.count(batch))

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss alone."""
        return self._loss_sum(call_model(model, batch), target(batch))

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the mean loss."""
        return {"loss": mean_loss}

    def evaluator(self) -> RegressionEvaluator:
        """Return what measures `loss`, `mae`, `rmse` and `r2`."""
        return RegressionEvaluator(self)

    def predict(self, model: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return the values, float32, in the data's unit, for a tensor or for a batch of the model's inputs."""
        with torch.inference_mode():
            return self._values(answer_to(model, inputs))

    def _values(self, outputs: Tensor) -> Tensor:
        return outputs.float() * self.scale + self.shift

    def _loss_sum(self, outputs: Tensor, labels: Tensor) -> Tensor:
        outputs = _fitting(outputs, labels).float()
        known = ~torch.isnan(labels)
        wanted = (torch.where(known, labels, self.shift).float() - self.shift) / self.scale
        if self.loss_name == "mse":
            losses = (outputs - wanted).square()
        elif self.loss_name == "l1":
            losses = (outputs - wanted).abs()
        else:
            losses = F.huber_loss(outputs, wanted, reduction="none", delta=self.delta)
        return torch.where(known, losses, 0).sum()


class RegressionEvaluator:
    """Measures `loss`, and in the data's unit `mae` and `rmse`; and `r2` where the labels differ. One pass."""

    def __init__(self, task: Regression) -> None:
        self._task, self._loss, self._errors = task, LossSum(), RegressionErrors()

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add a batch. Raises DataError for labels that do not fit."""
        outputs, labels = call_model(model, batch), target(batch)
        self._loss.add(self._task._loss_sum(outputs, labels), self._task.count(batch))
        self._errors.update(_fitting(self._task._values(outputs), labels), labels.float())

    def result(self) -> dict[str, float]:
        """Return the numbers. Raises DataError when no value was known."""
        return {"loss": self._loss.mean(), **self._errors.result().report()}


def _fitting(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the outputs in the labels' shape: a last side of one may be missing in either. Raises DataError."""
    if not labels.is_floating_point():
        raise DataError("labels must be floating point", found=labels.dtype, wanted="torch.float32")
    if outputs.dim() == labels.dim() + 1 and outputs.shape[-1] == 1:
        outputs = outputs.squeeze(-1)
    elif labels.dim() == outputs.dim() + 1 and labels.shape[-1] == 1:
        outputs = outputs.unsqueeze(-1)
    if outputs.shape != labels.shape:
        raise DataError("labels have the wrong shape", found=tuple(labels.shape), wanted=tuple(outputs.shape))
    return outputs
