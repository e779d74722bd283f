"""Gradient reset gate: a memory through time that a frame can close, for what is remembered and for what is learned.

A recurrent state h with a gate r in [0, 1] for each channel, read from the frame alone:

    r_t = hard_sigmoid(W_r x_t + b_r),   c_t = W_c x_t + b_c,   h_t = r_t h_{t-1} + (1 - r_t) c_t

An open gate (1) carries the state on unchanged. A closed one (0) starts it anew from the frame, and, since
dh_t/dh_{t-1} = r_t and there is no other path, stops the gradient to all that was before: the reset of the state is
the reset of the gradient. In a GRU the reset gate does the first half only: gradient still goes round it through the
update gate. The hard sigmoid reaches 0 and 1, where a soft one would always leak. It is for streams that never end,
where the past of another sentence or speaker must neither be heard nor learned from.
As the gate does not read the state, all frames are computed together, in log2(time) steps.
Sources: Cho et al. 2014, arXiv:1406.1078 (the reset gate); Gers, Schmidhuber and Cummins 2000, "Learning to Forget:
Continual Prediction with LSTM", doi:10.1162/089976600300015015 (a gate that resets the state in a stream without end);
Feng et al. 2024, "Were RNNs All We Needed?", arXiv:2410.01201 (one gate, read from the input, in parallel).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.float_tensor import float_tensor


class GradientResetGate(nn.Module):
    """A gated memory over (batch, time, d_model), to be added to its input. Causal: it never looks ahead."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_model)
        self.candidate = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)

    def init_gate(self) -> None:
        """Let the channels start with memories of 2 to 100 frames, all gates between open and closed."""
        frames = torch.logspace(0.301, 2, self.gate.out_features)
        with torch.no_grad():
            nn.init.normal_(self.gate.weight, std=0.02)
            self.gate.bias.copy_(6 * (1 - 1 / frames) - 3)  # where the hard sigmoid is 1 - 1/frames

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, time, d_model)."""
        y, _ = self.stream(x, self.start(x.shape[0]))
        return y

    def stream(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output for the next frames `x`, and the state after them."""
        keep = F.hardsigmoid(self.gate(x)).float()
        state = gated_scan(keep, (1 - keep) * self.candidate(x).float(), past)
        return self.out(state.to(x.dtype)), state[:, -1]

    def start(self, batch_size: int) -> Tensor:
        """Return the state before the first frame: (batch, d_model) of zeros, float32."""
        return torch.zeros(batch_size, self.out.in_features, device=float_tensor(self.out).device)


def gated_scan(keep: Tensor, new: Tensor, start: Tensor) -> Tensor:
    """Return all states (batch, time, d_model) of h_t = keep_t h_{t-1} + new_t, with h before the first = `start`.

    `keep`, `new`: (batch, time, d_model), `start`: (batch, d_model). Each round joins pairs of stretches twice as long.
    Source: Hillis and Steele 1986, "Data Parallel Algorithms", doi:10.1145/7902.7903.
    """
    new = torch.cat([new[:, :1] + keep[:, :1] * start[:, None], new[:, 1:]], dim=1)
    step, time = 1, keep.shape[1]
    while step < time:
        new = torch.cat([new[:, :step], new[:, step:] + keep[:, step:] * new[:, :-step]], dim=1)
        keep = torch.cat([keep[:, :step], keep[:, step:] * keep[:, :-step]], dim=1)
        step *= 2
    return new
