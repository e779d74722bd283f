"""Stochastic depth: in training, what a residual branch adds is left out for some samples.

What stays is divided by the share that stays, so its mean is unchanged. Not dropout: a sample's values go together.
Source: Huang et al. 2016, "Deep Networks with Stochastic Depth", arXiv:1603.09382.
"""

from __future__ import annotations

from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Zeros for a share `rate` of the samples, in training."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of x's shape (batch, ...)."""
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty((x.shape[0], *[1] * (x.dim() - 1))).bernoulli_(1 - self.rate)
        return x * (kept / (1 - self.rate))

    def extra_repr(self) -> str:
        """Return the rate, for printing."""
        return f"rate={self.rate:.3g}"


def linear_rates(highest: float, depth: int, *, reach_end: bool = True) -> list[float]:
    """Return a rate for each of `depth` blocks, rising evenly from 0.

    With `reach_end` the last block has `highest`; without, it is what a block after the last would have.
    """
    steps = max(depth - 1, 1) if reach_end else depth
    return [highest * index / steps for index in range(depth)]
