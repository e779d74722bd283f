"""Streaming processing block: the Conformer block, over whole inputs or chunk by chunk with the same weights.

Half a feed-forward layer, self-attention, convolution, a gated memory where asked for, the other half feed-forward, a
norm. Chunked: frames come in chunks, and a frame looks at its own chunk and at a bounded number before it. So its
look-ahead is bounded by the chunk, however many blocks are stacked, and what a block must keep between chunks is
bounded as well: keys and values, the last frames of each convolution, the memory's state. With causal convolutions
`stream` gives what `forward` gives under `deepseek.nn.masks.chunk_mask`.
Sources: Gulati et al. 2020, "Conformer", arXiv:2005.08100 (the block); Chen et al. 2021, "Developing Real-time
Streaming Transformer Transducer", arXiv:2010.11395 (chunks whose look-ahead does not grow with depth).
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.conformer_attention import FrameContext, RelativeSelfAttention
from deepseek.nn.conformer_conv import ConformerConv
from deepseek.nn.dropout import dropout
from deepseek.nn.dynamic_conv import DynamicConvAttention
from deepseek.nn.gradient_reset_gate import GradientResetGate


class BlockState(NamedTuple):
    """What a block keeps between chunks."""

    attention: tuple[Tensor, ...]
    """Keys and values, each (batch, num_heads, past_time, head_dim), then what the attention's own parts keep."""
    convolution: Tensor
    """(batch, d_model, kernel_size - 1)."""
    memory: Tensor | None
    """(batch, d_model) of the gradient reset gate, where there is one."""

    def last(self, frames: int) -> BlockState:
        """Return the state with keys and values of the last `frames` frames only."""
        keys, values, *more = self.attention
        keys, values = (x[:, :, max(0, x.shape[2] - frames) :] for x in (keys, values))
        return self._replace(attention=(keys, values, *more))


class HalfFeedForward(nn.Module):
    """Norm, linear layer, swish, linear layer; half of it is to be added to the input. (batch, time, d_model)."""

    def __init__(self, d_model: int, d_ff: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm = nn.LayerNorm(d_model)
        self.up = nn.Linear(d_model, d_ff)
        self.down = nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Return half of the layer's output, of x's shape."""
        hidden = dropout(F.silu(self.up(self.norm(x))), self.dropout, self.training)
        return 0.5 * dropout(self.down(hidden), self.dropout, self.training)


class StreamingBlock(nn.Module):
    """One Conformer block over (batch, time, d_model). The parts that differ between variants are given ready made."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        attention: RelativeSelfAttention | DynamicConvAttention,
        convolution: ConformerConv,
        memory: GradientResetGate | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.first_feed_forward = HalfFeedForward(d_model, d_ff, dropout=dropout)
        self.attention_norm = nn.LayerNorm(d_model)
        self.attention = attention
        self.convolution = convolution
        self.memory_norm = nn.LayerNorm(d_model) if memory is not None else None
        self.memory = memory
        self.second_feed_forward = HalfFeedForward(d_model, d_ff, dropout=dropout)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, context: FrameContext) -> Tensor:
        """Return (batch, time, d_model)."""
        x = x + self.first_feed_forward(x)
        x = x + dropout(self.attention(self.attention_norm(x), context), self.dropout, self.training)
        x = x + self.convolution(x, context.valid)
        if self.memory is not None and self.memory_norm is not None:
            x = x + dropout(self.memory(self.memory_norm(x)), self.dropout, self.training)
        out: Tensor = self.norm(x + self.second_feed_forward(x))
        return out

    def stream(self, x: Tensor, context: FrameContext, past: BlockState) -> tuple[Tensor, BlockState]:
        """Return the output for the next chunk `x`, without dropout, and the state after it."""
        x = x + self.first_feed_forward(x)
        attended, seen = self.attention.stream(self.attention_norm(x), context, past.attention)
        convolved, frames = self.convolution.stream(x + attended, past.convolution)
        x, state = x + attended + convolved, past.memory
        if self.memory is not None and self.memory_norm is not None and state is not None:
            remembered, state = self.memory.stream(self.memory_norm(x), state)
            x = x + remembered
        return self.norm(x + self.second_feed_forward(x)), BlockState(seen, frames, state)

    def start(self, batch_size: int) -> BlockState:
        """Return the state before the first chunk."""
        memory = None if self.memory is None else self.memory.start(batch_size)
        return BlockState(self.attention.start(batch_size), self.convolution.start(batch_size), memory)
