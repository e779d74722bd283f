"""Self-attention inside windows of a map, with relative position bias, and its shifted form.

Source: Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", arXiv:2103.14030,
section 3.2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.dot_product_attention import attention


class WindowLayout(NamedTuple):
    """How maps of one size are cut into windows; the same for every block of a stage."""

    size: tuple[int, int]
    """Height and width of the map."""
    window: tuple[int, int]
    """Height and width of a window: the wanted size, or the map's where that is smaller."""
    counts: tuple[int, int]
    """Windows down and across that cover the map; the last ones may reach past its edge."""
    shift: int
    """By how far a shifted block moves the windows; 0 where one window covers a side of the map."""
    bias_index: Tensor
    """(tokens, tokens), int64: the row of the bias table for each pair of places in a window."""
    neighbours: Tensor
    """(windows, tokens, tokens), bool: whether two places of a shifted window were near each other before the shift."""


def window_layout(size: tuple[int, int], window_size: int, device: torch.device) -> WindowLayout:
    """Return the layout for maps of `size` (height, width) and square windows of `window_size`."""
    # written as choices, not as min(): code compiled for many sizes then has constant windows
    window = (window_size if size[0] > window_size else size[0], window_size if size[1] > window_size else size[1])
    counts = ((size[0] + window[0] - 1) // window[0], (size[1] + window[1] - 1) // window[1])
    shift = window_size // 2 if size[0] > window_size and size[1] > window_size else 0
    rows, columns = (torch.arange(side, device=device) for side in window)
    down = rows[:, None, None, None] - rows[None, None, :, None] + window_size - 1
    right = columns[None, :, None, None] - columns[None, None, None, :] + window_size - 1
    tokens = window[0] * window[1]
    index = (down * (2 * window_size - 1) + right).reshape(tokens, tokens)
    # after the shift the last window of a row holds both edges of the map: number the pieces
    pieces = [
        (torch.arange(count * side, device=device) >= (count - 1) * side).long()
        + (torch.arange(count * side, device=device) >= count * side - shift)
        for count, side in zip(counts, window, strict=True)
    ]
    number = (pieces[0][:, None] * 3 + pieces[1])[None, :, :, None]
    number = cut_windows(number, window, counts)[0, :, :, 0]  # (windows, tokens)
    return WindowLayout(size, window, counts, shift, index, number[:, :, None] == number[:, None, :])


def cut_windows(x: Tensor, window: tuple[int, int], counts: tuple[int, int]) -> Tensor:
    """Return (batch, windows, tokens, channels) for a map (batch, height, width, channels) of `counts` windows."""
    x = x.reshape(x.shape[0], counts[0], window[0], counts[1], window[1], x.shape[3])
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def join_windows(x: Tensor, window: tuple[int, int], counts: tuple[int, int]) -> Tensor:
    """Return the map (batch, height, width, channels) of which `cut_windows` made `x`."""
    x = x.reshape(x.shape[0], *counts, *window, x.shape[3])
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class WindowAttention(nn.Module):
    """Self-attention over a map (batch, height, width, channels) in which a place sees its window alone."""

    def __init__(
        self, channels: int, num_heads: int, window_size: int, *, shifted: bool, qkv_bias: bool, dropout: float
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.shifted = shifted
        self.dropout = dropout
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.out = nn.Linear(channels, channels)
        self.bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))

    def forward(self, x: Tensor, layout: WindowLayout) -> Tensor:
        """Return a map of x's shape; `layout` must be the one for x's height and width."""
        (height, width), window, counts = layout.size, layout.window, layout.counts
        bottom, right = counts[0] * window[0], counts[1] * window[1]
        shift = layout.shift if self.shifted else 0
        # compiled for all sizes there is one way, with or without places left over, and no stride depends on them
        padded = torch.compiler.is_compiling() or (bottom, right) != (height, width)
        if padded:
            x = F.pad(x, (0, 0, 0, right - width, 0, bottom - height))
        if shift:
            x = x.roll((-shift, -shift), dims=(1, 2))
        x = join_windows(self._attend(cut_windows(x, window, counts), layout, shift > 0), window, counts)
        if shift:
            x = x.roll((shift, shift), dims=(1, 2))
        return x[:, :height, :width].clone(memory_format=torch.contiguous_format) if padded else x

    def _attend(self, x: Tensor, layout: WindowLayout, shifted: bool) -> Tensor:
        batch, windows, tokens = x.shape[:3]
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        # windows and heads together are one dimension: the mask is then the same for every image of the batch
        query, key, value = heads.permute(3, 0, 1, 4, 2, 5).flatten(2, 3)
        bias = self.bias_table[layout.bias_index].permute(2, 0, 1)[None]  # (1, num_heads, tokens, tokens)
        bias = bias.expand(windows, -1, -1, -1)
        if shifted:
            bias = bias.masked_fill(~layout.neighbours[:, None], torch.finfo(bias.dtype).min)
        dropout = self.dropout if self.training else 0.0
        y = attention(query, key, value, bias.flatten(0, 1)[None], dropout=dropout)
        y = y.view(batch, windows, self.num_heads, tokens, y.shape[-1]).transpose(2, 3).flatten(3)
        out: Tensor = self.out(y)
        return out
