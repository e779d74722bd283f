"""A feed-forward layer with any activation, with or without biases. The gated form is `gated_feed_forward`.

Source: Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762, section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from deepseek.nn.dropout import dropout


class ActivatedFeedForward(nn.Module):
    """`down(activation(up(x)))` over the last dimension; `dropout` acts between the two layers."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: Callable[[Tensor], Tensor],
        *,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.dropout = dropout
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of x's shape."""
        inner = self.activation(self.up(x))
        out: Tensor = self.down(dropout(inner, self.dropout, self.training) if self.dropout else inner)
        return out
