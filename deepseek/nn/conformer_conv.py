"""The convolution module of the Conformer: gated, depthwise, normalised; over whole inputs or piece by piece.

Norm, pointwise layer with a gated linear unit, depthwise convolution over time, norm, swish, pointwise layer.
The causal form pads on the left only; a stream needs it, and keeps the last kernel_size - 1 frames.
Source: Gulati et al. 2020, "Conformer", arXiv:2005.08100, section 2.2.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.dropout import dropout
from deepseek.nn.float_tensor import float_tensor


class ConformerConv(nn.Module):
    """Convolution over (batch, time, d_model), to be added to its input.

    `norm` after the depthwise layer: "batch" as in the paper, or "layer", which does not care about batch size and
    padding. An even kernel looks one frame further ahead than back.
    """

    def __init__(
        self, d_model: int, kernel_size: int, *, causal: bool, dropout: float, norm: Literal["batch", "layer"] = "batch"
    ) -> None:
        super().__init__()
        self.left = kernel_size - 1 if causal else (kernel_size - 1) // 2
        self.right = kernel_size - 1 - self.left
        self.dropout = dropout
        self.norm = nn.LayerNorm(d_model)
        self.expand = nn.Linear(d_model, 2 * d_model)
        self.depthwise = nn.Conv1d(d_model, d_model, kernel_size, groups=d_model, bias=False)  # the norm has a bias
        self.inner_norm = nn.BatchNorm1d(d_model) if norm == "batch" else nn.LayerNorm(d_model)
        self.contract = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return (batch, time, d_model). Frames that are False in `valid` (batch, time) count as silence (zeros)."""
        return self._convolve(F.pad(self._gated(x, valid), (self.left, self.right)))

    def stream(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the causal `forward` gives for the next frames `x`, and the state after them."""
        frames = torch.cat([past, self._gated(x, None)], dim=2)
        return self._convolve(frames), frames[:, :, frames.shape[2] - self.left :]

    def start(self, batch_size: int) -> Tensor:
        """Return the state before the first frame: (batch, d_model, kernel_size - 1) of zeros."""
        return float_tensor(self.contract).new_zeros(batch_size, self.contract.in_features, self.left)

    def _gated(self, x: Tensor, valid: Tensor | None) -> Tensor:
        x = F.glu(self.expand(self.norm(x)))
        if valid is not None:
            x = x.masked_fill(~valid[:, :, None], 0)
        return x.transpose(1, 2)  # (batch, d_model, time)

    def _convolve(self, frames: Tensor) -> Tensor:
        x = self.depthwise(frames)
        if isinstance(self.inner_norm, nn.LayerNorm):
            x = self.inner_norm(x.transpose(1, 2))
        else:
            x = self.inner_norm(x).transpose(1, 2)
        return dropout(self.contract(F.silu(x)), self.dropout, self.training)
