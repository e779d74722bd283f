"""A long short-term memory layer made of two linear layers, so that compression and compilers can work on it.

The weights are those of `torch.nn.LSTM` (gates in the order input, forget, cell, output), but as `nn.Linear` modules:
quantization swaps them like any other, and `torch.compile`, which refuses `nn.LSTM`, follows. Plain weights run in
torch's fused kernel; what that can't do (a state that starts anew inside a row, swapped layers) runs step by step.
Sources: Hochreiter and Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735; Gers et al. 2000,
doi:10.1162/089976600300015015 (the forget gate).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]
"""Hidden and cell state, each (batch, hidden_size)."""


class LSTMLayer(nn.Module):
    """(batch, time, input_size) to (batch, time, hidden_size), looking back only."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.input = nn.Linear(input_size, 4 * hidden_size)
        self.recurrent = nn.Linear(hidden_size, 4 * hidden_size, bias=False)

    def init_weights(self) -> None:
        """Uniform weights of at most 1/sqrt(hidden_size), no biases, apart from 1 for the forget gate.

        An open forget gate lets gradient through from the start: Jozefowicz et al. 2015, "An Empirical Exploration of
        Recurrent Network Architectures", section 2.2.
        """
        bound = self.hidden_size**-0.5
        nn.init.uniform_(self.input.weight, -bound, bound)
        nn.init.uniform_(self.recurrent.weight, -bound, bound)
        nn.init.zeros_(self.input.bias)
        with torch.no_grad():
            self.input.bias[self.hidden_size : 2 * self.hidden_size] = 1

    def forward(self, x: Tensor, state: State, starts: Tensor | None = None) -> tuple[Tensor, State]:
        """Return the hidden states of all steps, and the state after the last.

        `starts` (batch, time) of bool: steps before which the state is set to zero, step by step and so slowly.
        """
        if starts is None and _plain(self.input) and _plain(self.recurrent):
            return self._fused(x, state)
        (hidden, cell), gates, outputs = state, self.input(x), []
        for step in range(x.shape[1]):
            if starts is not None:
                hidden, cell = (part.masked_fill(starts[:, step, None], 0) for part in (hidden, cell))
            parts = (gates[:, step] + self.recurrent(hidden)).chunk(4, dim=-1)
            cell = parts[1].sigmoid() * cell + parts[0].sigmoid() * parts[2].tanh()
            hidden = parts[3].sigmoid() * cell.tanh()
            outputs.append(hidden)
        return torch.stack(outputs, dim=1), (hidden, cell)

    def _fused(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        bias = self.input.bias
        weights = [self.input.weight, self.recurrent.weight, bias, torch.zeros_like(bias)]
        states = [part[None] for part in state]
        # has_biases, num_layers, dropout, train, bidirectional, batch_first
        y, hidden, cell = torch.lstm(x, states, weights, True, 1, 0.0, self.training, False, True)
        return y, (hidden[0], cell[0])


def _plain(layer: nn.Module) -> bool:
    """Return whether the layer's weights say all: it is no other kind, and nobody watches it being called."""
    return type(layer) is nn.Linear and not layer._forward_hooks and not layer._forward_pre_hooks
