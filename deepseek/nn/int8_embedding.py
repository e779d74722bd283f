"""An embedding table in int8, one scale for each row. Not here: which tables are worth it (`deepseek.quantization`).

A row's scale is that of the output channel when a language model's head shares the table, so the two share one int8
weight and are stored once.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.int8_linear import quantize_rows


class Int8Embedding(nn.Module):
    """`nn.Embedding` with an int8 table. Input: integer ids `(...)`; output `(..., embedding_dim)` in `scale.dtype`.

    State dict: `weight` int8 `(num_embeddings, embedding_dim)`, `scale` fp32 `(num_embeddings,)`.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.register_buffer("weight", torch.zeros(num_embeddings, embedding_dim, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.ones(num_embeddings, device=device))

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding) -> Self:
        """Return an int8 copy of `embedding`."""
        layer = cls(embedding.num_embeddings, embedding.embedding_dim, embedding.weight.device)
        layer.weight, layer.scale = quantize_rows(embedding.weight)
        return layer.train(embedding.training)

    def forward(self, ids: Tensor) -> Tensor:
        scale = F.embedding(ids, self.scale.unsqueeze(1))
        return F.embedding(ids, self.weight).to(scale.dtype) * scale

    def dequantized_weight(self) -> Tensor:
        """Return the fp32 table that the int8 table and its scales stand for."""
        return self.weight.to(torch.float32) * self.scale.to(torch.float32).unsqueeze(1)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"
