"""A transformer over a log-mel spectrogram: two convolutions that halve the time, fixed sinusoids, pre-norm blocks.

The encoder of Whisper, and the audio tower of CLIP. Not here: the spectrogram itself.
Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", arXiv:2212.04356.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.errors import ModelError
from deepseek.nn.checks import check_floats, check_shape
from deepseek.nn.dropout import dropout
from deepseek.nn.encoder_block import MLP
from deepseek.nn.multi_head_attention import MultiHeadAttention
from deepseek.nn.positions import sinusoidal_positions
from deepseek.nn.pre_norm_block import PreNormBlock
from deepseek.nn.recompute import recomputed


class AudioEncoder(nn.Module):
    """(batch, num_mels, frames) to (batch, (frames + 1) // 2, d_model)."""

    positions: Tensor

    def __init__(
        self,
        num_mels: int,
        max_frames: int,
        d_model: int,
        num_heads: int,
        d_ff: int,
        num_layers: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.max_frames = max_frames
        self.dropout = dropout
        self.conv1 = nn.Conv1d(num_mels, d_model, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(d_model, d_model, kernel_size=3, stride=2, padding=1)
        self.register_buffer("positions", sinusoidal_positions((max_frames + 1) // 2, d_model))
        self.blocks = nn.ModuleList(
            PreNormBlock(
                lambda: nn.LayerNorm(d_model),
                MultiHeadAttention(d_model, num_heads, key_bias=False, dropout=dropout),
                MLP(d_model, d_ff),
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(d_model)

    def forward(self, input_features: Tensor, checkpointing: bool = False) -> Tensor:
        """Return the encoded frames, normalised. `checkpointing`: compute activations again in the backward pass.

        Raises ModelError for a wrong number of mel bands and for more than `max_frames` frames.
        """
        check_shape("input_features", input_features, ("batch", self.conv1.in_channels, "frames"))
        check_floats("input_features", input_features)
        if not torch.compiler.is_compiling() and not 0 < input_features.shape[2] <= self.max_frames:
            raise ModelError(
                "input_features has the wrong length",
                found=f"{input_features.shape[2]} frames",
                wanted=f"1 to {self.max_frames}",
                fix="cut the recording into parts",
            )
        x = F.gelu(self.conv1(input_features.to(self.norm.weight.dtype)))
        x = F.gelu(self.conv2(x)).transpose(1, 2)
        x = x + self.positions[: x.shape[1]].to(x.dtype)
        x = dropout(x, self.dropout, self.training) if self.dropout else x
        for block in self.blocks:
            x = recomputed(checkpointing and self.training, block, x)
        encoded: Tensor = self.norm(x)
        return encoded
