"""What a task is: the one object that says what a model is for, in training, evaluation, compression and serving."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch on `device`; tensors, and tensors in dicts, lists and tuples."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def mean_loss(model: nn.Module, batches: Iterable[Any], task: Task, device: torch.device | None = None) -> float:
    """Return the task's loss over all batches, divided by the number of items, without gradients, in eval mode.

    Raises DataError when there is no item. The model's mode is restored.
    """
    was_training, total, count = model.training, 0.0, 0
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                loss = task.loss(model, batch if device is None else to_device(batch, device))
                total += float(loss.sum)
                count += loss.count
    finally:
        model.train(was_training)
    if count == 0:
        raise DataError("there is nothing to evaluate", found="no target in any batch", wanted="at least one")
    return total / count
