"""Which classes were taken for which: a matrix of counts that accuracy, F1, Dice and IoU are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from deepseek.errors import DataError
from deepseek.nn.losses import IGNORE


def confusion(found: Tensor, wanted: Tensor, num_classes: int, ignore_index: int = IGNORE) -> Tensor:
    """Return how many items of class i (row) were taken for class j (column): (num_classes, num_classes), int64.

    Both are int64 of any one shape; items whose `wanted` is `ignore_index` don't count. Raises DataError for a class
    outside 0 to num_classes - 1.
    """
    valid = wanted != ignore_index
    found, wanted = found[valid], wanted[valid]
    for name, values in (("prediction", found), ("mask", wanted)):
        if values.numel() and not (0 <= int(values.min()) and int(values.max()) < num_classes):
            raise DataError(
                f"a {name} has an unknown class",
                found=f"{int(values.min())} to {int(values.max())}",
                wanted=f"0 to {num_classes - 1}",
            )
    return torch.bincount(wanted * num_classes + found, minlength=num_classes**2).view(num_classes, num_classes)


class ConfusionMatrix:
    """Adds up `confusion` over batches; `counts` is the matrix so far, None before the first batch."""

    def __init__(self, num_classes: int, ignore_index: int = IGNORE) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.counts: Tensor | None = None

    def update(self, found: Tensor, wanted: Tensor) -> None:
        """Add predictions and targets, int64 of one shape. Raises DataError for an unknown class."""
        part = confusion(found, wanted, self.num_classes, self.ignore_index)
        self.counts = part if self.counts is None else self.counts + part

    def result(self) -> Tensor:
        """Return the counts (num_classes, num_classes), int64, on the CPU. Raises DataError when nothing counted."""
        if self.counts is None or int(self.counts.sum()) == 0:
            raise DataError("there is nothing to evaluate", found="no target in any batch", wanted="at least one")
        return self.counts.cpu()
