"""What a task is: the one object that says what a model is for, in training, evaluation, compression and serving.

Not here: the metrics (`deepseek.metrics`), and building a task from a recipe's values (`tasks.build`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from deepseek.errors import DataError

Batch = Mapping[str, Tensor]
"""Tensors by the field's names, all with the batch first."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss not yet divided: `sum` is a float32 scalar, `count` the number of items it sums over."""

    sum: Tensor
    count: int


class Task(Protocol):
    """What a model is for. The loop divides the sum of losses by the count over all micro-batches and ranks."""

    name: str

    def count(self, batch: Any) -> int:
        """Return how many items (tokens, samples) the batch's loss will sum over."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> Loss:
        """Return the loss of a batch, not divided."""
        ...

    def loss_sum(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the sum alone, in tensors only: what `torch.compile` takes."""
        ...

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return what to report of a mean loss."""
        ...

    def predict(self, model: nn.Module, inputs: Any) -> Any:
        """Return the model's answer to inputs, without gradients."""
        ...


class Evaluator(Protocol):
    """Measures a model over batches; a task makes a new one for each evaluation by its method `evaluator()`."""

    def update(self, model: nn.Module, batch: Any) -> None:
        """Add a batch, which is on the model's device. The caller sets eval mode, no_grad and autocast."""
        ...

    def result(self) -> dict[str, float]:
        """Return the metrics, `loss` among them. Raises DataError when no batch had anything to measure."""
        ...


class LossSum:
    """Adds up losses on the device, so that a batch costs no synchronisation."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self.count = 0

    def add(self, loss_sum: Tensor, count: int) -> None:
        """Add a scalar that sums over `count` items."""
        part = loss_sum.detach()
        part = part.double() if part.device.type != "mps" else part.float()  # mps has no float64
        self._total = part if self._total is None else self._total + part
        self.count += count

    def mean(self) -> float:
        """Return the sum divided by the items. Raises DataError when there is none."""
        if self._total is None or self.count == 0:
            raise DataError("there is nothing to evaluate", found="no target in any batch", wanted="at least one")
        return float(self._total) / self.count


class MeanLoss:
    """The evaluator of a task that has none of its own: the mean loss, and what `task.metrics` makes of it."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._loss = LossSum()

    def update(self, model: nn.Module, batch: Any) -> None:
        """Add the loss of a batch."""
        loss = self._task.loss(model, batch)
        self._loss.add(loss.sum, loss.count)

    def result(self) -> dict[str, float]:
        """Return `loss` and the task's metrics of it. Raises DataError when there is no item."""
        mean = self._loss.mean()
        return {"loss": mean, **self._task.metrics(mean)}


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch on `device`; tensors, and tensors in dicts, lists and tuples."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def evaluator_of(task: Task) -> Evaluator:
    """Return a new evaluator: the task's own where it has one, else its mean loss."""
    make: Callable[[], Evaluator] | None = getattr(task, "evaluator", None)
    return make() if make is not None else MeanLoss(task)


def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    task: Task,
    device: torch.device | None = None,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> dict[str, float]:
    """Return what the task measures over all batches, `loss` among it: in eval mode, without gradients.

    `autocast` makes the context of each batch. Raises DataError when there is nothing to measure. The mode of every
    part of the model is restored.
    """
    evaluator = evaluator_of(task)
    with eval_mode(model), torch.no_grad():
        for batch in batches:
            with autocast():
                evaluator.update(model, batch if device is None else to_device(batch, device))
    return evaluator.result()


def mean_loss(model: nn.Module, batches: Iterable[Any], task: Task, device: torch.device | None = None) -> float:
    """Return the task's loss over all batches, divided by the number of items, without gradients, in eval mode.

    Raises DataError when there is no item. The model's mode is restored.
    """
    total = LossSum()
    with eval_mode(model), torch.no_grad():
        for batch in batches:
            loss = task.loss(model, batch if device is None else to_device(batch, device))
            total.add(loss.sum, loss.count)
    return total.mean()


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Set eval mode inside; afterwards each part of the model has the mode it had."""
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
