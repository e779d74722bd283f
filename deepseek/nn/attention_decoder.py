"""A transformer decoder that reads an encoder's frames: token ids so far to logits of the next token.

Pre-norm blocks of causal self-attention, cross-attention and feed-forward, sinusoidal positions, so that no length is
the longest. Its width may differ from the encoder's.
Sources: Vaswani et al. 2017, arXiv:1706.03762; Dong et al. 2018, "Speech-Transformer",
doi:10.1109/ICASSP.2018.8462506.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.activated_feed_forward import ActivatedFeedForward
from deepseek.nn.multi_head_attention import MultiHeadAttention
from deepseek.nn.positions import relative_position_encoding
from deepseek.nn.pre_norm_block import PreNormBlock


class AttentionDecoder(nn.Module):
    """Token ids and frames to logits; the output layer may share the embedding's weight (`tie_embeddings`)."""

    def __init__(
        self,
        vocab_size: int,
        embedding_dim: int,
        memory_dim: int,
        *,
        num_layers: int,
        num_heads: int,
        d_ff: int,
        dropout: float,
        tie_embeddings: bool,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.memory = nn.Linear(memory_dim, embedding_dim) if memory_dim != embedding_dim else None
        self.blocks = nn.ModuleList(
            PreNormBlock(
                lambda: nn.LayerNorm(embedding_dim),
                MultiHeadAttention(embedding_dim, num_heads, key_bias=False, causal=True, dropout=dropout),
                ActivatedFeedForward(embedding_dim, d_ff, F.relu, dropout=dropout),
                MultiHeadAttention(embedding_dim, num_heads, key_bias=False, dropout=dropout),
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embedding_dim)
        self.head = nn.Linear(embedding_dim, vocab_size)
        if tie_embeddings:
            self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return logits (batch, time, vocab_size) for ids (batch, time) and frames (batch, frames, memory_dim).

        `mask`: boolean, True where a token may look, broadcast over (batch, num_heads, time, frames).
        """
        dim = self.embedding.embedding_dim
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.embedding(input_ids) * math.sqrt(dim)
        x = x + relative_position_encoding(position, dim).to(x.dtype)
        if self.memory is not None:
            memory = self.memory(memory)
        for block in self.blocks:
            x = block(x, None, memory, mask)
        logits: Tensor = self.head(self.norm(x))
        return logits
