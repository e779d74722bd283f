"""Segmentation: a class for each pixel. Batches: `pixel_values` and `masks`.

`masks` is int64 (batch, *space), classes from 0 (background), `ignore_index` where there is none. The model gives
logits (batch, channels, *space), one channel for foreground against background; or, with deep supervision, a named
tuple with `heads` (batch, heads, channels, *space), whose losses are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepseek.nn.losses import IGNORE
from deepseek.nn.segmentation_losses import ALPHA, dice_focal_loss
from deepseek.tasks.task import Batch, Loss


class Segmentation:
    """Dice plus Focal loss of each image, averaged over the heads; `focal_weight` 0 leaves Dice alone.

    `gamma` and `alpha` are the Focal loss's: see `deepseek.nn.segmentation_losses.focal_loss`.
    """

    name = "segmentation"

    def __init__(
        self,
        focal_weight: float = 1.0,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = ALPHA,
        ignore_index: int = IGNORE,
    ) -> None:
        self.focal_weight, self.gamma, self.alpha = focal_weight, gamma, alpha
        self.ignore_index = ignore_index

    def count(self, batch: Batch) -> int:
        """Return the number of images."""
        return len(batch["pixel_values"])

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss summed over the images, and their number."""
        return Loss(self.loss_sum(model, batch), self.count(batch))

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss alone."""
        output = model(batch["pixel_values"])
        heads = [output] if isinstance(output, Tensor) else output.heads.unbind(1)
        losses = [
            dice_focal_loss(logits, batch["masks"], self.gamma, self.alpha, self.ignore_index, self.focal_weight).sum()
            for logits in heads
        ]
        return torch.stack(losses).mean()

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the mean loss; Dice and IoU come from `deepseek.evaluate.segmentation`."""
        return {"loss": mean_loss}

    def predict(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return probabilities (batch, channels, *space) for `inputs` (batch, channels, *space), in float32.

        `chosen_classes` makes a mask of them.
        """
        with torch.inference_mode():
            output = model(inputs)
            logits = (output if isinstance(output, Tensor) else output.logits).float()
            return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def chosen_classes(probabilities: Tensor) -> Tensor:
    """Return the likeliest class of each pixel, int64 (batch, *space), from what `Segmentation.predict` returned."""
    if probabilities.shape[1] == 1:
        return (probabilities[:, 0] > 0.5).long()
    return probabilities.argmax(1)
