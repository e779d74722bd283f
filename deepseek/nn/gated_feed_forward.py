"""The gated feed-forward layer: one projection opens and closes another.

Source: Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202; with SiLU it is the SwiGLU of Llama.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class GatedFeedForward(nn.Module):
    """`down(activation(gate(x)) * up(x))` over the last dimension."""

    def __init__(
        self, d_model: int, d_ff: int, *, bias: bool = False, activation: Callable[[Tensor], Tensor] = F.silu
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=bias)
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of x's shape."""
        out: Tensor = self.down(self.activation(self.gate(x)) * self.up(x))
        return out
