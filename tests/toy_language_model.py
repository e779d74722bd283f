"""A language model of a few thousand weights with tied embeddings, for tests of compression and export."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, LONGEST = 96, 24


class Block(nn.Module):
    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.qkv, self.projection = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        self.up, self.down = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.projection(mixed)
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class ToyLanguageModel(nn.Module):
    def __init__(self, d_model: int = 32, num_layers: int = 2) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, d_model), nn.Embedding(LONGEST, d_model)
        self.blocks = nn.Sequential(*(Block(d_model, 4) for _ in range(num_layers)))
        self.norm = nn.LayerNorm(d_model)
        self.lm_head = nn.Linear(d_model, VOCABULARY, bias=False)
        self.lm_head.weight = self.tokens.weight
        nn.init.normal_(self.tokens.weight, std=0.1)

    def forward(self, input_ids: Tensor) -> Tensor:
        if input_ids.shape[1] > LONGEST:
            raise ValueError(f"at most {LONGEST} tokens")
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1], device=input_ids.device))
        return self.lm_head(self.norm(self.blocks(x)))

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        return {"input_ids": torch.randint(VOCABULARY, (batch_size, 12))}
