"""Attention masks: boolean, True where a token may look, broadcast over (batch, num_heads, time, key_time)."""

from __future__ import annotations

import torch
from torch import Tensor


def causal_mask(time: int, past: int, device: torch.device) -> Tensor:
    """Return (time, past + time): a token looks at itself and at what came before."""
    return torch.ones(time, past + time, dtype=torch.bool, device=device).tril(past)


def document_mask(document_ids: Tensor) -> Tensor:
    """Return (batch, 1, time, time): causal, and inside one document. `document_ids`: (batch, time)."""
    same = document_ids[:, :, None] == document_ids[:, None, :]
    causal = causal_mask(document_ids.shape[1], 0, document_ids.device)
    return (same & causal)[:, None]


def padding_mask(attention_mask: Tensor) -> Tensor:
    """Return (batch, 1, 1, time) from `attention_mask` (batch, time), which is 0 or False at padding."""
    return attention_mask.bool()[:, None, None, :]


def sliding_mask(time: int, window: int, device: torch.device) -> Tensor:
    """Return (time, time): causal, and at most `window` tokens back, the token itself among them."""
    return causal_mask(time, 0, device).triu(1 - window)


def chunk_mask(time: int, chunk: int | Tensor, left_chunks: int | None, device: torch.device) -> Tensor:
    """Return (time, time): a frame looks at its own chunk and at `left_chunks` before it (None: all before it).

    `chunk`: its frames, an int or a scalar tensor.
    """
    number = torch.arange(time, device=device) // chunk
    distance = number[:, None] - number[None, :]
    return (distance >= 0) if left_chunks is None else (distance >= 0) & (distance <= left_chunks)
