"""Attention of one new token of each text to keys and values in pages, in shapes that no text's length changes.

So a step can be recorded once and played again for other texts (CUDA graphs): nothing here looks at a number on the
device. All places of a text's pages are read; those beyond its length count nothing. Not here: prompts, and the CPU's
kernel (`paged_attention`).
Source: Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention",
arXiv:2309.06180.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def decode_attention(
    query: Tensor, key_pages: Tensor, value_pages: Tensor, block_table: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """Return (texts, num_heads, value_dim) for `query` (texts, num_heads, head_dim), the last token of each text.

    `key_pages` (num_blocks, block_size, kv_heads, head_dim) and `value_pages` (..., value_dim); kv_heads divides
    num_heads. `block_table` (texts, pages) of integers: each text's pages in order, then any that exist. `lengths`
    (texts,): the keys of each text, its new one included, at least 1.
    """
    size, kv_heads = key_pages.shape[1:3]
    place = torch.arange(size, device=query.device)
    slots = (block_table.long()[:, :, None] * size + place).flatten(1)  # (texts, places)
    seen = torch.arange(slots.shape[1], device=query.device) < lengths[:, None]
    # beyond its length a text reads its own first place: what others left in a page, were it NaN, stays with them
    slots = torch.where(seen, slots, slots[:, :1])
    key, value = (pages.flatten(0, 1)[slots].transpose(1, 2).to(query.dtype) for pages in (key_pages, value_pages))
    grouped = torch.unflatten(query, 1, (kv_heads, -1))  # the heads that share keys are the queries of one head
    return F.scaled_dot_product_attention(grouped, key, value, seen[:, None, None], scale=scale).flatten(1, 2)
