"""Any model with any loss function: the task for a network of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.tasks.task import Loss


class Supervised:
    """Inputs and targets, with a loss that averages over the samples (`nn.CrossEntropyLoss()`, `nn.MSELoss()`, ...).

    A batch is a pair (inputs, targets) or a dict with the keys `inputs` and `targets`; samples come first.
    """

    name = "supervised"

    def __init__(self, loss_function: Callable[[Any, Tensor], Tensor]) -> None:
        self.loss_function = loss_function

    def count(self, batch: Any) -> int:
        """Return the number of samples."""
        return len(_pair(batch)[1])

    def loss(self, model: nn.Module, batch: Any) -> Loss:
        """Return the mean loss times the number of samples, and that number."""
        return Loss(self.loss_sum(model, batch), self.count(batch))

    def loss_sum(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the summed loss alone."""
        inputs, targets = _pair(batch)
        return self.loss_function(model(inputs), targets) * len(targets)

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the mean loss."""
        return {"loss": mean_loss}

    def predict(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return the model's outputs."""
        with torch.inference_mode():
            outputs: Tensor = model(inputs)
            return outputs


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, dict):
        return batch["inputs"], batch["targets"]
    inputs, targets = batch
    return inputs, targets
