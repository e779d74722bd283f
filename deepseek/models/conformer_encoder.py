"""The encoder of the Conformer: speech features to frames, over whole recordings or in chunks.

The whole is in `conformer`.

Papers: Gulati et al. 2020, "Conformer: Convolution-augmented Transformer for Speech Recognition", arXiv:2005.08100;
Zhang et al. 2020, "Unified Streaming and Non-streaming Two-pass End-to-end Model", arXiv:2012.05481 (chunks of a drawn
size in training).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.nn.config_checks import check_heads
from deepseek.nn.conformer_attention import FrameContext, RelativeSelfAttention, relative_positions
from deepseek.nn.conformer_conv import ConformerConv
from deepseek.nn.conv_subsampling import ConvSubsampling, subsampled_length
from deepseek.nn.dropout import dropout
from deepseek.nn.dynamic_conv import DynamicConv, DynamicConvAttention
from deepseek.nn.gradient_reset_gate import GradientResetGate
from deepseek.nn.masks import chunk_mask
from deepseek.nn.recompute import recomputed
from deepseek.nn.streaming_block import BlockState, StreamingBlock


class ConformerEncoderConfig(Config):
    """Sizes and variants of the encoder."""

    assignable: ClassVar[frozenset[str]] = frozenset({"chunk_size", "left_chunks", "dynamic_chunks"})

    num_mels: int = Field(default=80, ge=7, le=4096)
    """Features a frame: mel bands, or coefficients."""
    num_layers: int = Field(default=16, ge=1, le=1024)
    """Number of Conformer blocks."""
    d_model: int = Field(default=256, ge=2, le=1 << 16, multiple_of=2)
    """Width of the encoder."""
    attention_heads: int = Field(default=4, ge=1, le=1024)
    """Attention heads; divides d_model."""
    d_ff: int | None = Field(default=None, ge=1, le=1 << 18)
    """Width inside the feed-forward layers; null is 4 * d_model."""
    conv_kernel: int = Field(default=32, ge=1, le=1024)
    """Frames that the depthwise convolution spans."""
    conv_norm: Literal["batch", "layer"] = "batch"
    """Norm in the convolution module: the paper's batch norm, or layer norm for small batches."""
    attention: Literal["self", "dynamic_conv"] = "self"
    """Self-attention alone, or mixed with a dynamic convolution for each channel."""
    dynamic_kernel: int = Field(default=15, ge=1, le=1024)
    """Frames that the dynamic convolution spans, where attention is dynamic_conv."""
    reset_gate: bool = False
    """A gated memory in each block, which a frame can close, for what came before the frames attention sees."""
    causal: bool = False
    """Convolutions look back only; streaming needs it."""
    chunk_size: int | None = Field(default=None, ge=1, le=1 << 16)
    """Encoder frames (of four feature frames) in a chunk: attention sees its own chunk and those before; null: all."""
    left_chunks: int | None = Field(default=None, ge=0, le=1 << 16)
    """Chunks before its own that attention sees; null: all of them."""
    dynamic_chunks: bool = False
    """Train for whole recordings and for chunks at once: half of the batches see all, the others chunks of 1 to
    2 * chunk_size frames. Outside training `forward` then sees all, and chunk_size is that of streams alone."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of activations set to zero in training."""

    @model_validator(mode="after")
    def _fits(self) -> ConformerEncoderConfig:
        check_heads(self.d_model, self.attention_heads, "d_model", "attention_heads")
        if self.chunk_size is not None and not self.causal:
            raise ValueError(
                f"chunk_size {self.chunk_size} needs convolutions that look back only; nearest that fits: causal true"
            )
        if self.left_chunks is not None and self.chunk_size is None:
            raise ValueError(
                f"left_chunks {self.left_chunks} has no chunks to count; nearest that fits: chunk_size 16, "
                "or left_chunks null"
            )
        if self.dynamic_chunks and self.chunk_size is None:
            raise ValueError("dynamic_chunks has no chunk size to vary; nearest that fits: chunk_size 16")
        return self


class ConformerEncoder(nn.Module):
    """Features (batch, frames, num_mels) to frames (batch, time, d_model)."""

    def __init__(self, config: ConformerEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.subsampling = ConvSubsampling(config.num_mels, config.d_model)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.num_layers))

    def forward(self, features: Tensor, lengths: Tensor, checkpointing: bool = False) -> tuple[Tensor, Tensor]:
        """Return the frames and whether each counts, (batch, time) of bool. `lengths` (batch,): feature frames."""
        config = self.config
        x = dropout(self.subsampling(features), config.dropout, self.training)
        time = x.shape[1]
        valid = torch.arange(time, device=x.device) < subsampled_length(lengths)[:, None]
        mask = valid[:, None, None, :]
        chunk = self._chunk(time, x.device)
        if chunk is not None:
            mask = mask & chunk_mask(time, chunk, config.left_chunks, x.device)
        mask = mask | torch.eye(time, dtype=torch.bool, device=x.device)  # padding sees itself: no empty rows
        context = FrameContext(relative_positions(time, time, config.d_model, x), mask, valid)
        for block in self.blocks:
            x = recomputed(checkpointing and self.training, block, x, context)
        return x, valid

    def _chunk(self, time: int, device: torch.device) -> int | Tensor | None:
        """Return the frames of a chunk in this pass, None where a frame sees all; drawn anew for each batch in training
        with dynamic chunks."""
        config = self.config
        if not config.dynamic_chunks or config.chunk_size is None:
            return config.chunk_size
        if not self.training:
            return None
        drawn = torch.randint(1, 2 * config.chunk_size + 1, (), device=device)  # a tensor: the graph does not change
        return torch.where(torch.rand((), device=device) < 0.5, time, drawn)

    def stream(self, features: Tensor, past: list[BlockState]) -> tuple[Tensor, list[BlockState]]:
        """Return the frames of the next chunk and the state after it; `features` are the chunk's own, with the
        REACH - STRIDE frames that follow it."""
        x = self.subsampling(features)
        seen = past[0].attention[0].shape[2]
        context = FrameContext(relative_positions(x.shape[1], seen + x.shape[1], self.config.d_model, x))
        states = []
        for block, before in zip(self.blocks, past, strict=True):
            x, state = block.stream(x, context, before)  # type: ignore[operator]
            states.append(state)
        return x, states


def _block(config: ConformerEncoderConfig) -> StreamingBlock:
    width, dropout = config.d_model, config.dropout
    attention: RelativeSelfAttention | DynamicConvAttention
    attention = RelativeSelfAttention(width, config.attention_heads, dropout=dropout)
    if config.attention == "dynamic_conv":
        near = DynamicConv(width, config.attention_heads, config.dynamic_kernel, causal=config.causal, dropout=dropout)
        attention = DynamicConvAttention(attention, near)
    return StreamingBlock(
        width,
        config.d_ff or 4 * width,
        attention=attention,
        convolution=ConformerConv(
            width, config.conv_kernel, causal=config.causal, dropout=dropout, norm=config.conv_norm
        ),
        memory=GradientResetGate(width) if config.reset_gate else None,
        dropout=dropout,
    )
