"""Image classification: one class for each image. Batches: `pixel_values` and `labels`.

`labels` is int64 (batch,), -100 for an image that does not count; or, for mixed images, floats (batch, num_labels):
each class's share. The loss is that of `deepseek.tasks.classification`. Not here: several classes at once.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from deepseek.metrics.classification import count_correct as count_correct
from deepseek.tasks.classification import Classifier


class ImageClassification(Classifier):
    """One class for each image, whatever the model calls its input."""

    name = "image_classification"

    @staticmethod
    def answer(model: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return the logits for `pixel_values` (batch, channels, height, width), alone or in a batch."""
        logits: Tensor = model(inputs if isinstance(inputs, Tensor) else inputs["pixel_values"])
        return logits
