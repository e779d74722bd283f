"""Area under the ROC curve: the chance that an item of the class scores above one that is not of it.

Ties count one half, so the area is the Mann-Whitney statistic divided by the number of pairs. It is exact: the scores
of all items are kept, 8 bytes each.
Source: Hanley and McNeil 1982, "The Meaning and Use of the Area under a ROC Curve",
doi:10.1148/radiology.143.1.7063747.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from deepseek.errors import DataError


class RocAuc:
    """Collects scores and answers of a yes-or-no question over batches."""

    def __init__(self) -> None:
        self._scores: list[Tensor] = []
        self._positive: list[Tensor] = []

    def update(self, scores: Tensor, positive: Tensor) -> None:
        """Add `scores` (items,), higher for yes, and the answers `positive` (items,), 0 or 1."""
        if scores.shape != positive.shape or scores.dim() != 1:
            raise DataError(
                "each score needs an answer", found=f"{tuple(scores.shape)} and {tuple(positive.shape)}", wanted="(n,)"
            )
        self._scores.append(scores.detach().float().cpu())
        self._positive.append(positive.detach().cpu().bool())

    def result(self) -> float:
        """Return the area, 0 to 1; 0.5 is chance. Raises DataError where only one of the answers is there."""
        scores = torch.cat(self._scores).numpy() if self._scores else np.zeros(0)
        positive = torch.cat(self._positive).numpy() if self._positive else np.zeros(0, dtype=np.bool_)
        yes, no = int(positive.sum()), int((~positive).sum())
        if not yes or not no:
            raise DataError("a ROC curve needs both answers", found=f"{yes} times yes, {no} times no")
        if np.isnan(scores).any():
            raise DataError("a score is not a number", found="nan")
        _, place, ties = np.unique(scores, return_inverse=True, return_counts=True)
        rank = (ties.cumsum() - (ties - 1) / 2)[place]  # equal scores share the mean of their ranks
        return float((rank[positive].sum() - yes * (yes + 1) / 2) / (yes * no))
