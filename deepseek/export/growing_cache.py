"""A cache whose past comes in as tensors and whose present goes out as longer ones, for graphs without memory.

It stands in for `KVCache` and `LatentCache`, which write in place. Not here: the graphs (`generation_export.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepseek.errors import ExportError
from deepseek.nn.dot_product_attention import attention
from deepseek.nn.kv_cache import KVCache
from deepseek.nn.latent_cache import LatentCache


class Layout(NamedTuple):
    """What a model keeps of a text: for each of `num_layers` layers the `parts`, each of `shape` but for its length."""

    num_layers: int
    parts: tuple[str, ...]
    shape: tuple[int, ...]
    """Sizes behind the batch, 0 where the length is: (heads, 0, head_dim), or (0, width)."""
    length: str = "past"
    """Name of the length's axis."""

    def names(self, pattern: str) -> list[str]:
        """Return the tensors' names, `pattern` formatted with the layer, then the part."""
        return [pattern.format(layer) + part for layer in range(self.num_layers) for part in self.parts]

    def axes(self, pattern: str) -> dict[str, tuple[str | None, ...]]:
        """Return the free dimensions by name."""
        names = ("batch", *(None if size else self.length for size in self.shape))
        return dict.fromkeys(self.names(pattern), names)

    def tensors(self, pattern: str, batch_size: int, length: int) -> dict[str, Tensor]:
        """Return float32 tensors of noise by name, always the same."""
        generator = torch.Generator().manual_seed(0)
        shape = (batch_size, *(size or length for size in self.shape))
        return {name: torch.randn(shape, generator=generator) for name in self.names(pattern)}

    def dim(self) -> int:
        """Return the dimension of the length."""
        return 1 + self.shape.index(0)


def layout_of(model: Any) -> Layout:
    """Return what a model's own cache holds. Raises ExportError for one that does not grow by the token."""
    cache = model.new_cache(1, 1)
    if isinstance(cache, KVCache):
        layers, _, heads, _, head_dim = cache.keys.shape
        return Layout(layers, ("key", "value"), (heads, 0, head_dim))
    if isinstance(cache, LatentCache):
        layers, _, _, width = cache.latents.shape
        return Layout(layers, ("latent",), (0, width))
    raise ExportError(
        "the model keeps its past in another form",
        found=type(cache).__name__,
        wanted="keys and values, or latents",
        fix="export its forward pass with export_onnx",
    )


class GrowingCache:
    """The past of all layers; `append` returns it with the new tokens behind, and `present` collects that."""

    whole = True

    def __init__(self, past: Sequence[Tensor], layout: Layout) -> None:
        """`past`: the tensors in the order of `layout.names`."""
        self._layout = layout
        self.present = list(past)
        self.length = past[0].shape[layout.dim()]

    def append(self, layer: int, *new: Tensor) -> Any:
        """Return a layer's parts with the new tokens behind: one tensor, or a pair of them."""
        first = layer * len(new)
        for index, tensor in enumerate(new, start=first):
            self.present[index] = torch.cat([self.present[index], tensor], dim=self._layout.dim())
        grown = self.present[first : first + len(new)]
        return grown[0] if len(grown) == 1 else tuple(grown)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the causal attention of `query` to the past and the new tokens, as the stored form has it."""
        if len(self._layout.parts) == 1:  # latents: one head, whose values are the first part of its keys
            keys = self.append(layer, key[:, 0])[:, None]
            values = keys[..., : value.shape[-1]]
        else:
            keys, values = self.append(layer, key, value)
        return attention(query, keys, values, mask, causal=True, scale=scale)

    def positions(self, time: int, device: torch.device) -> Tensor:
        """Return where the next `time` tokens stand in their text: (time,) of int64."""
        return torch.arange(self.length, self.length + time, device=device)

    def advance(self, time: int) -> None:
        """Do nothing: the length is that of the past until the next step."""
