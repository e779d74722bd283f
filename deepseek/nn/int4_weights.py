"""Weights as whole numbers 0..15 with scales: one scale (and zero point) for each row, or for each group in a row.

Symmetric: `(q - 8) * scale`; asymmetric: `(q - zero_point) * scale`. Not here: better rounding than to the nearest
(`deepseek.quantization.gptq`, `awq`), the layers (`int4_linear`, `int4_layers`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepseek.errors import ModelError

LEVELS = 15
MIDDLE = 8
"""The number that means zero in a symmetric weight; its scale covers -7..7, and -8 stays unused."""
_TINY = 1e-30


def group_count(width: int, group_size: int | None) -> int:
    """Return the groups of a row of `width` weights; None is one group.

    Raises ModelError if `group_size` does not divide the row.
    """
    if group_size is None:
        return 1
    if group_size < 1 or width % group_size:
        divisors = [size for size in range(8, min(width, 1024) + 1) if width % size == 0]
        raise ModelError(
            "the group size does not divide the layer's input",
            found=f"group size {group_size}, {width} inputs",
            wanted=f"one of {', '.join(map(str, divisors))}" if divisors else None,
            fix="choose another group_size, granularity='per_channel', or name the layer in `skip`",
        )
    return width // group_size


def choose_scales(weight: Tensor, group_size: int | None, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """Return (scale fp32 `(rows, groups)`, zero point uint8 of that shape or None) for `weight` `(rows, width)`."""
    groups = weight.detach().to(torch.float32).unflatten(1, (group_count(weight.shape[1], group_size), -1))
    if symmetric:
        return groups.abs().amax(dim=2).clamp_min(_TINY) / 7, None
    low, high = groups.amin(dim=2).clamp_max(0), groups.amax(dim=2).clamp_min(0)
    scale = (high - low).clamp_min(_TINY) / LEVELS
    return scale, torch.round(-low / scale).clamp(0, LEVELS).to(torch.uint8)


def round_to_levels(weight: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """Return the nearest levels 0..15 as uint8, of the shape of `weight` `(rows, width)`."""
    groups = weight.detach().to(torch.float32).unflatten(1, (scale.shape[1], -1))
    middle = MIDDLE if zero_point is None else zero_point.to(torch.float32).unsqueeze(2)
    lowest = 1 if zero_point is None else 0
    return torch.round(groups / scale.unsqueeze(2)).add_(middle).clamp_(lowest, LEVELS).flatten(1).to(torch.uint8)


def dequantize_levels(levels: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """Return the fp32 weights `(rows, width)` that `levels` uint8 stand for."""
    groups = levels.to(torch.float32).unflatten(1, (scale.shape[1], -1))
    middle = MIDDLE if zero_point is None else zero_point.to(torch.float32).unsqueeze(2)
    return ((groups - middle) * scale.unsqueeze(2)).flatten(1)
