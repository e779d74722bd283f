"""Weights as whole numbers 0..15 with scales: one scale (and zero point) for each row, or for each group in a row.

Symmetric: `(q - 8) * scale`; asymmetric: `(q - zero_point) * scale`. Not here: better rounding than to the nearest
(`deepseek.quantization.gptq`, `awq`), the layers (`int4_linear`, `int4_layers`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.errors import ModelError

LEVELS = 15
MIDDLE = 8
"""The number that means zero in a symmetric weight; its scale covers -7..7, and -8 stays unused."""
_TINY = 1e-30


def group_count(width: int, group_size: int | None) -> int:
    """Return the groups of a row of `width` weights, the last of them maybe shorter; None is one group.

    Raises ModelError for a group size below 1.
    """
    if group_size is not None and group_size < 1:
        raise ModelError("not a size of a group", found=group_size, wanted="at least 1")
    return 1 if group_size is None else -(-width // group_size)


def choose_scales(weight: Tensor, group_size: int | None, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """Return (scale fp32 `(rows, groups)`, zero point uint8 of that shape or None) for `weight` `(rows, width)`.

    A scale is a number that bfloat16 holds, so that every kernel multiplies by the same.
    """
    groups = _grouped(weight.detach().to(torch.float32), group_size)
    if symmetric:
        return _short(groups.abs().amax(dim=2).clamp_min(_TINY) / 7), None
    low, high = groups.amin(dim=2).clamp_max(0), groups.amax(dim=2).clamp_min(0)
    scale = _short((high - low).clamp_min(_TINY) / LEVELS)
    return scale, torch.round(-low / scale).clamp(0, LEVELS).to(torch.uint8)


def round_to_levels(weight: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int | None) -> Tensor:
    """Return the nearest levels 0..15 as uint8, of the shape of `weight` `(rows, width)`."""
    groups = _grouped(weight.detach().to(torch.float32), group_size)
    middle = MIDDLE if zero_point is None else zero_point.to(torch.float32).unsqueeze(2)
    lowest = 1 if zero_point is None else 0
    levels = torch.round(groups / scale.unsqueeze(2)).add_(middle).clamp_(lowest, LEVELS)
    return levels.flatten(1)[:, : weight.shape[1]].to(torch.uint8)


def dequantize_levels(levels: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int | None) -> Tensor:
    """Return the fp32 weights `(rows, width)` that `levels` uint8 stand for."""
    groups = _grouped(levels.to(torch.float32), group_size)
    middle = MIDDLE if zero_point is None else zero_point.to(torch.float32).unsqueeze(2)
    return ((groups - middle) * scale.unsqueeze(2)).flatten(1)[:, : levels.shape[1]]


def _grouped(values: Tensor, group_size: int | None) -> Tensor:
    """Return `(rows, groups, size)`, zeros at the end of a last group that is shorter."""
    width = values.shape[1]
    groups = group_count(width, group_size)
    size = width if groups == 1 else group_size or width
    extra = groups * size - width
    padded = F.pad(values, (0, extra)) if extra else values
    return padded.reshape(-1, groups, size)


def _short(scale: Tensor) -> Tensor:
    return scale.to(torch.bfloat16).to(torch.float32)
