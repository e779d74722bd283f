"""The cache of latent attention: one narrow vector a token and layer in place of every head's keys and values.

For DeepSeek-V3 it holds 576 numbers a token and layer; keys and values of its 128 heads would be 40,960.
Source: DeepSeek-AI 2024, "DeepSeek-V2", arXiv:2405.04434, section 2.1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.nn.dot_product_attention import attention


class LatentCache:
    """Latents of `num_layers` layers, each (batch, capacity, width).

    `length` is the number of tokens stored. A model calls `append` or `attend` for each layer, then `advance` once.
    """

    whole = True
    """`append` returns a layer's whole text; a cache in pages has `attend` alone."""

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        capacity: int,
        width: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.latents = torch.empty((num_layers, batch_size, capacity, width), device=device, dtype=dtype)
        self.capacity = capacity
        self.length = 0
        self._remembered: dict[int, Tensor] = {}

    def append(self, layer: int, latent: Tensor) -> Tensor:
        """Store (batch, time, width) after what is there; return all of the layer's latents.

        Raises ModelError when the text would outgrow the capacity.
        """
        end = self.length + latent.shape[1]
        if end > self.capacity:
            raise ModelError("the text outgrows its cache", found=f"{end} tokens", wanted=f"at most {self.capacity}")
        self.latents[layer, :, self.length : end] = latent
        return self.latents[layer, :, :end].to(latent.dtype)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
        """Store latents and return the causal attention of `query` to all of the layer's, one head for all.

        `query` (batch, num_heads, time, width), `key` (batch, 1, time, width); `value` (batch, 1, time, value_width) is
        the first part of `key`. Returns (batch, num_heads, time, value_width).
        """
        stored = self.append(layer, key[:, 0])[:, None]
        return attention(query, stored, stored[..., : value.shape[-1]], causal=True, scale=scale)

    def remembered(self, layer: int, make: Callable[[], Tensor]) -> Tensor:
        """Return what `make` gives, asked once a layer: something that follows from the layer's weights alone."""
        if layer not in self._remembered:
            self._remembered[layer] = make()
        return self._remembered[layer]

    def positions(self, time: int, device: torch.device) -> Tensor:
        """Return where the next `time` tokens stand in their text: (time,) of int64."""
        return torch.arange(self.length, self.length + time, device=device)

    def advance(self, time: int) -> None:
        """Count `time` tokens as stored, after every layer has appended them."""
        self.length += time
