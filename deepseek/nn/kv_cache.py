"""The keys and values of a text so far, so that a new token costs one step of attention and not all of them.

One contiguous block a layer, allocated once for the longest text. Paged memory is a server's matter: what a model asks
of a cache is `attend`, `positions`, `length` and `advance`, and how the keys lie is the cache's own affair.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.nn.dot_product_attention import attention


class KVCache:
    """Keys and values of `num_layers` layers, each (batch, num_heads, capacity, head_dim).

    `length` is the number of tokens stored. A model calls `attend` for each layer, then `advance` once.
    """

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        num_heads: int,
        capacity: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (num_layers, batch_size, num_heads, capacity, head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store (batch, num_heads, time, head_dim) after what is there; return all of the layer's keys and values.

        A pruned layer may have fewer heads than the cache.
        Raises ModelError when the text would outgrow the capacity.
        """
        end = self.length + key.shape[2]
        if end > self.capacity:
            raise ModelError("the text outgrows its cache", found=f"{end} tokens", wanted=f"at most {self.capacity}")
        heads = slice(None) if key.shape[1] == self.keys.shape[2] else slice(key.shape[1])
        self.keys[layer, :, heads, self.length : end] = key
        self.values[layer, :, heads, self.length : end] = value
        keys, values = self.keys[layer, :, heads, :end], self.values[layer, :, heads, :end]
        return keys.to(key.dtype), values.to(value.dtype)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Store `key` and `value` as `append` does; return the causal attention of `query` to all of the layer's.

        `query` (batch, num_heads, time, head_dim), where the cache's heads divide num_heads; `scale` and `mask` as for
        `deepseek.nn.dot_product_attention.attention`. Returns (batch, num_heads, time, head_dim).
        """
        keys, values = self.append(layer, key, value)
        return attention(query, keys, values, mask, causal=True, scale=scale)

    def positions(self, time: int, device: torch.device) -> Tensor:
        """Return where the next `time` tokens stand in their text: (time,) of int64."""
        return torch.arange(self.length, self.length + time, device=device)

    def advance(self, time: int) -> None:
        """Count `time` tokens as stored, after every layer has appended them."""
        self.length += time
