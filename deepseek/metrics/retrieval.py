"""How well one thing finds another: the share of queries whose own partner is among the k nearest.

Row i of both sides belongs together. Partners that score equal to others stand behind them, so that a model that says
the same of everything finds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepseek.errors import DataError

_ROWS = 1024  # scores of this many queries at a time


class RetrievalRecall:
    """Collects embeddings of pairs over batches, on the CPU, and ranks all against all at the end."""

    def __init__(self, top: Sequence[int] = (1, 5, 10)) -> None:
        self.top = tuple(top)
        self._first: list[Tensor] = []
        self._second: list[Tensor] = []

    def update(self, first: Tensor, second: Tensor) -> None:
        """Add the embeddings (batch, dim) of both sides. Raises DataError where the shapes differ."""
        if first.dim() != 2 or first.shape != second.shape:
            raise DataError(
                "embeddings must come in pairs",
                found=f"{tuple(first.shape)} and {tuple(second.shape)}",
                wanted="(batch, dim) twice",
            )
        self._first.append(first.detach().float().cpu())
        self._second.append(second.detach().float().cpu())

    def result(self) -> dict[int, tuple[float, float]]:
        """Return for each k the recall from first to second and back. Raises DataError when there is no pair."""
        if not self._first:
            raise DataError("there is nothing to evaluate", found="no pair in any batch", wanted="at least one")
        first, second = torch.cat(self._first), torch.cat(self._second)
        there, back = _ranks(first, second), _ranks(second, first)
        return {k: (float((there < k).double().mean()), float((back < k).double().mean())) for k in self.top}


def _ranks(queries: Tensor, answers: Tensor) -> Tensor:
    """Return for each query how many others score at least as high as its partner: (queries,) int64."""
    ranks = []
    for start in range(0, len(queries), _ROWS):
        scores = queries[start : start + _ROWS] @ answers.T
        row = torch.arange(len(scores))
        ranks.append((scores >= scores[row, row + start][:, None]).sum(dim=1) - 1)
    return torch.cat(ranks)
