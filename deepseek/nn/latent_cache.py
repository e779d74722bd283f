"""The cache of latent attention: one narrow vector a token and layer in place of every head's keys and values.

For DeepSeek-V3 it holds 576 numbers a token and layer; keys and values of its 128 heads would be 40,960.
Source: DeepSeek-AI 2024, "DeepSeek-V2", arXiv:2405.04434, section 2.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepseek.errors import ModelError


class LatentCache:
    """Latents of `num_layers` layers, each (batch, capacity, width).

    `length` is the number of tokens stored. A model calls `append` for each layer, then `advance` once.
    """

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

    def append(self, layer: int, latent: Tensor) -> Tensor:
        """Store (batch, time, width) after what is there; return all of the layer's latents.

        Raises ModelError when the text would outgrow the capacity.
        """
        end = self.length + latent.shape[1]
        if end > self.capacity:
            raise ModelError("the text outgrows its cache", found=f"{end} tokens", wanted=f"at most {self.capacity}")
        self.latents[layer, :, self.length : end] = latent
        return self.latents[layer, :, :end].to(latent.dtype)

    def advance(self, time: int) -> None:
        """Count `time` tokens as stored, after every layer has appended them."""
        self.length += time
