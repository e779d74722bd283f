"""Dynamic convolution attention: self-attention for what is far, a convolution each frame chooses for what is near.

The dynamic convolution is that of Wu et al. 2019: each frame predicts, from itself alone, a kernel for each head; the
kernel is a softmax over its taps, so that it weighs the neighbours as attention would, in time linear in the length.
Beside it runs ordinary self-attention, and a learned share for each channel mixes the two, starting at one half. Two
branches, one local and one global: Wu et al. 2020 ("Lite Transformer"), who split the channels between them instead.
Not meant here: Battenberg et al. 2019, arXiv:1910.10288, who give the same name to a cross-attention for speech
synthesis, and Chen et al. 2020, arXiv:1912.03458, who weigh whole kernels of an image network.
Sources: Wu et al. 2019, "Pay Less Attention with Lightweight and Dynamic Convolutions", arXiv:1901.10430;
Wu et al. 2020, "Lite Transformer with Long-Short Range Attention", arXiv:2004.11886.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.conformer_attention import FrameContext, RelativeSelfAttention
from deepseek.nn.dropout import dropout
from deepseek.nn.float_tensor import float_tensor


class DynamicConv(nn.Module):
    """Gated linear unit, a convolution with predicted kernels, linear layer; over (batch, time, d_model).

    The causal form looks back kernel_size - 1 frames, the other one as far ahead as back. `dropout` acts on the taps.
    """

    def __init__(self, d_model: int, num_heads: int, kernel_size: int, *, causal: bool, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.left = kernel_size - 1 if causal else (kernel_size - 1) // 2
        self.right = kernel_size - 1 - self.left
        self.dropout = dropout
        self.expand = nn.Linear(d_model, 2 * d_model)
        self.kernel = nn.Linear(d_model, num_heads * kernel_size, bias=False)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return (batch, time, d_model). Frames that are False in `valid` (batch, time) count as zeros."""
        frames = F.glu(self.expand(x))
        if valid is not None:
            frames = frames.masked_fill(~valid[:, :, None], 0)
        return self._convolve(F.pad(frames, (0, 0, self.left, self.right)), frames)

    def stream(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the causal `forward` gives for the next frames `x`, and the state after them."""
        new = F.glu(self.expand(x))
        frames = torch.cat([past, new], dim=1)
        return self._convolve(frames, new), frames[:, frames.shape[1] - self.left :]

    def start(self, batch_size: int) -> Tensor:
        """Return the state before the first frame: (batch, kernel_size - 1, d_model) of zeros."""
        return float_tensor(self.out).new_zeros(batch_size, self.left, self.out.in_features)

    def _convolve(self, padded: Tensor, frames: Tensor) -> Tensor:
        batch, time, d_model = frames.shape
        size = self.left + self.right + 1
        taps = self.kernel(frames).view(batch, time, self.num_heads, size, 1).softmax(dim=3)
        taps = dropout(taps, self.dropout, self.training)
        # (batch, time, num_heads, head_dim, size)
        windows = padded.view(batch, -1, self.num_heads, d_model // self.num_heads).unfold(1, size, 1)
        out: Tensor = self.out((windows @ taps).reshape(batch, time, d_model))
        return out


class DynamicConvAttention(nn.Module):
    """Self-attention and dynamic convolution of the same frames, mixed by a learned share for each channel."""

    def __init__(self, attention: RelativeSelfAttention, convolution: DynamicConv) -> None:
        super().__init__()
        self.attention = attention
        self.convolution = convolution
        self.share = nn.Parameter(torch.zeros(attention.out.out_features))

    def forward(self, x: Tensor, context: FrameContext) -> Tensor:
        """Return (batch, time, d_model)."""
        return self._mix(self.attention(x, context), self.convolution(x, context.valid))

    def stream(self, x: Tensor, context: FrameContext, past: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return what the causal `forward` gives for the next frames `x`, and the state after them."""
        far, seen = self.attention.stream(x, context, past[:2])
        near, last = self.convolution.stream(x, past[2])
        return self._mix(far, near), (*seen, last)

    def start(self, batch_size: int) -> tuple[Tensor, ...]:
        """Return the state before the first frame: keys, values, and the frames the convolution looks back to."""
        return *self.attention.start(batch_size), self.convolution.start(batch_size)

    def _mix(self, far: Tensor, near: Tensor) -> Tensor:
        return torch.lerp(far, near, self.share.sigmoid())
