"""Contrastive learning: what belongs together shall be near, what does not far apart.

Batches: a CLIP's inputs, row i of each belonging together: `input_ids`, `pixel_values`, `attention_mask`, and
`input_features` where the model hears. Every other row of the batch is a wrong partner, so the loss depends on the
batch's size: gradient accumulation is not one large batch here.
Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.errors import DataError
from deepseek.metrics.retrieval import RetrievalRecall
from deepseek.nn.contrastive_loss import contrastive_loss
from deepseek.tasks.inputs import call_model
from deepseek.tasks.task import Batch, Loss, LossSum


class Contrastive:
    """Symmetric InfoNCE in nats, summed over the rows; with sounds the mean over the three pairs of kinds."""

    name = "contrastive"

    def count(self, batch: Batch) -> int:
        """Return the number of rows."""
        return _rows(batch)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the summed loss and the number of rows. Raises DataError where the inputs differ in rows."""
        return Loss(self.loss_sum(model, batch), self.count(batch))

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss alone."""
        return _loss_sum(call_model(model, batch), _rows(batch))

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the mean loss in nats."""
        return {"loss": mean_loss}

    def evaluator(self) -> ContrastiveEvaluator:
        """Return what measures the loss and how well each kind finds the others."""
        return ContrastiveEvaluator(self)

    def predict(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the vectors of each kind by name (`text`, `image`, `audio`), (batch, dim) of length 1."""
        with torch.inference_mode():
            return _vectors(call_model(model, inputs))


class ContrastiveEvaluator:
    """Measures `loss` (of each batch) and, over all rows at once, recall at 1, 5 and 10.

    `text_to_image_recall1` is the share of texts whose own image is the nearest of all; `image_to_text_recall1` the
    other way round, and so for the other pairs.
    """

    def __init__(self, task: Contrastive) -> None:
        self._task, self._loss = task, LossSum()
        self._recalls: dict[tuple[str, str], RetrievalRecall] = {}

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add a batch."""
        output, rows = call_model(model, batch), self._task.count(batch)
        self._loss.add(_loss_sum(output, rows), rows)
        for (one, first), (other, second) in combinations(_vectors(output).items(), 2):
            self._recalls.setdefault((one, other), RetrievalRecall()).update(first, second)

    def result(self) -> dict[str, float]:
        """Return the numbers. Raises DataError when there was no row."""
        found = {"loss": self._loss.mean()}
        for (one, other), recall in self._recalls.items():
            for top, (there, back) in recall.result().items():
                found[f"{one}_to_{other}_recall{top}"] = there
                found[f"{other}_to_{one}_recall{top}"] = back
        return found


def _vectors(output: Any) -> dict[str, Tensor]:
    names = ("text", "image", "audio")
    return {name: getattr(output, f"{name}_embeds") for name in names if hasattr(output, f"{name}_embeds")}


def _loss_sum(output: Any, rows: int) -> Tensor:
    pairs = list(combinations(_vectors(output).values(), 2))
    losses = [contrastive_loss(first, second, output.logit_scale) for first, second in pairs]
    return torch.stack(losses).mean() * rows


def _rows(batch: Batch) -> int:
    """Return the number of rows. Raises DataError where there is none, or the inputs differ in it."""
    sizes = {key: len(value) for key, value in batch.items()}
    if len(set(sizes.values())) != 1:
        found = ", ".join(f"{key} {size}" for key, size in sizes.items()) or "no input"
        raise DataError("each row needs all its inputs", found=found, wanted="as many rows of each")
    return next(iter(sizes.values()))
