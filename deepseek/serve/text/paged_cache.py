"""Keys and values in pages: the memory of all running texts, of which a text holds as many pages as it needs.

Tokens of several texts are computed as one batch row; each knows its position, its page and its own text's pages. What
stands in a page is never moved, so that texts with one beginning can share it. Latent attention keeps latents in place
of keys, and its values are their first part. Not here: who holds which page (`scheduler`), the attention itself
(`deepseek.nn.paged_attention`, `deepseek.nn.decode_attention`).
Source: Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention",
arXiv:2309.06180.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from deepseek.errors import ConfigError, ModelError
from deepseek.hardware import memory_available
from deepseek.nn.decode_attention import decode_attention
from deepseek.nn.kv_cache import KVCache
from deepseek.nn.latent_cache import LatentCache
from deepseek.nn.paged_attention import paged_attention, write_pages

if TYPE_CHECKING:
    from deepseek.serve.text.limits import EngineLimits

FREE_SHARE = 0.25
"""How much of the free memory pages may take where nothing else is said."""

SPARE = 2
"""Pages beyond this many times what all answers side by side can fill are of no use, not even to share beginnings."""


class Step(NamedTuple):
    """Where the tokens of one step stand."""

    positions: Tensor
    """(tokens,) of int64: in their own text."""
    slots: Tensor
    """(tokens,) of int64: page * block_size + place in the page."""
    block_table: Tensor
    """(texts, pages) of int32: the pages of each text in order; what is beyond its length is never read."""
    starts: Tensor
    """(texts + 1,) of int32: where the tokens of each text begin in the step, and at last the number of tokens."""
    lengths: Tensor
    """(texts,) of int32: tokens of each text, those of this step included."""
    longest: int
    """The largest of `lengths`."""
    single: bool = False
    """Every text has one token in the step, and attention is to read all places of the table: shapes are fixed."""


class PageShape(NamedTuple):
    """What one layer keeps of a token: `heads` vectors of `width` numbers, `parts` times (keys, values; or latents)."""

    heads: int
    width: int
    parts: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token in this layer."""
        return self.heads * self.width * self.parts * self.dtype.itemsize


class PagedCache:
    """Pages of all layers, each (num_blocks, block_size, heads, width); zeros at first, so that no memory comes later.

    `begin` says where the tokens of a step stand; then the model reads them as a batch of one row.
    """

    whole = False

    def __init__(
        self, shapes: Sequence[PageShape], num_blocks: int, block_size: int, device: torch.device | str
    ) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.length = 0
        self.keys = [
            torch.zeros(num_blocks, block_size, shape.heads, shape.width, dtype=shape.dtype, device=device)
            for shape in shapes
        ]
        self.values = [
            torch.zeros_like(keys) if shape.parts == 2 else keys for shape, keys in zip(shapes, self.keys, strict=True)
        ]
        self._remembered: dict[int, Tensor] = {}
        self._step: Step | None = None

    def begin(self, step: Step) -> None:
        """Take the places of the next tokens."""
        self._step = step
        # a model holds `length` + tokens against its longest text
        self.length = step.longest - step.positions.shape[0]

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Write `key` and `value` (1, heads, tokens, width) into the pages; return each token's look at its own text.

        `query` (1, num_heads, tokens, width). Returns (1, num_heads, tokens, value's width).
        """
        if mask is not None or self._step is None:
            raise ModelError("a paged text has a causal mask alone, and begins with `begin`")
        step, keys, values = self._step, self.keys[layer], self.values[layer]
        write_pages(keys, step.slots, key[0].transpose(0, 1))
        if values is not keys:
            write_pages(values, step.slots, value[0].transpose(0, 1))
        rows, width = query[0].transpose(0, 1), value.shape[-1]
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        if step.single:
            y = decode_attention(rows, keys, values[..., :width], step.block_table, step.lengths, scale)
        else:
            y = paged_attention(rows, keys, values[..., :width], step.block_table, step.starts, step.lengths, scale)
        return y.transpose(0, 1)[None]

    def positions(self, time: int, device: torch.device) -> Tensor:
        """Return where the tokens of this step stand in their texts: (time,) of int64."""
        if self._step is None or self._step.positions.shape[0] != time:
            raise ModelError("the step has another number of tokens", found=time)
        return self._step.positions

    def advance(self, time: int) -> None:
        """Do nothing: the scheduler counts."""

    def remembered(self, layer: int, make: Callable[[], Tensor]) -> Tensor:
        """Return what `make` gives, asked once a layer; see `LatentCache.remembered`."""
        if layer not in self._remembered:
            self._remembered[layer] = make()
        return self._remembered[layer]


class _Probe:
    """Stands in for a cache while a model reads one token, and notes what each layer would keep."""

    whole = False
    length = 0

    def __init__(self, latent: bool) -> None:
        self.parts = 1 if latent else 2
        self.shapes: dict[int, PageShape] = {}

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        self.shapes[layer] = PageShape(key.shape[1], key.shape[3], self.parts, key.dtype)
        return query[..., : value.shape[-1]]

    def positions(self, time: int, device: torch.device) -> Tensor:
        return torch.arange(time, device=device)

    def advance(self, time: int) -> None:
        pass

    def remembered(self, layer: int, make: Callable[[], Tensor]) -> Tensor:
        return make()


def has_pages(model: Any) -> bool:
    """Return whether a model's cache can be kept in pages: keys and values, or latents, that grow by the token."""
    return hasattr(model, "new_cache") and isinstance(model.new_cache(1, 1), KVCache | LatentCache)


@torch.inference_mode()
def page_shapes(model: Any, device: torch.device) -> list[PageShape]:
    """Return what each layer keeps of a token, found by letting the model read one (pruned layers have fewer heads)."""
    probe = _Probe(isinstance(model.new_cache(1, 1), LatentCache))
    model.forward_features(torch.zeros((1, 1), dtype=torch.int64, device=device), cache=probe)
    return [probe.shapes[layer] for layer in sorted(probe.shapes)]


def count_blocks(limits: EngineLimits, bytes_per_token: int, max_length: int, device: torch.device) -> int:
    """Return how many pages there shall be: what `limits.kv_bytes` holds, or a share of the free memory.

    Without `kv_bytes` never more than `SPARE` times what all answers side by side can fill.
    Raises ConfigError when not even one page fits.
    """
    page = bytes_per_token * limits.block_size
    text = -(-max_length // limits.block_size)
    if limits.kv_bytes is not None:
        count = limits.kv_bytes // page
    else:
        count = min(int(_free_bytes(device) * FREE_SHARE) // page, SPARE * limits.max_active * text)
    if count < 1:
        raise ConfigError(
            "there is no room for the keys and values of a text",
            found=f"{limits.kv_bytes} bytes" if limits.kv_bytes is not None else "too little free memory",
            wanted=f"at least kv_bytes = {page} for {limits.block_size} tokens, {page * text} for the longest text",
        )
    return count


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return memory_available() or 1 << 30
