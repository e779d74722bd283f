"""Small whole numbers stored several to a byte: the layout of int4, ternary and binary weights.

The last dimension is packed, the first value of a byte in its lowest bits; a last byte that is not full ends in zeros.
Not here: what the numbers mean (`int4_weights`, `ternary_weights`, `binary_layers`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepseek.errors import ModelError

WIDTHS = (1, 2, 4)
"""Bits of a value that divide a byte."""


def packed_size(count: int, bits: int) -> int:
    """Return how many bytes hold `count` values of `bits` bits. Raises ModelError for bits other than 1, 2 or 4."""
    if bits not in WIDTHS:
        raise ModelError("no such packing", found=f"{bits} bits", wanted="1, 2 or 4")
    return -(-count * bits // 8)


def pack(values: Tensor, bits: int) -> Tensor:
    """Return uint8 `(..., packed_size(n, bits))` of `values` uint8 `(..., n)`, each below `2 ** bits`."""
    size, each = packed_size(values.shape[-1], bits), 8 // bits
    padded = torch.nn.functional.pad(values, (0, size * each - values.shape[-1]))
    parts = padded.reshape(*values.shape[:-1], size, each) << _shifts(values.device, bits)
    return parts.sum(dim=-1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the `count` values of the last dimension as uint8 `(..., count)`: what `pack` was given."""
    shifts, levels = range(0, 8, bits), 2**bits
    if torch.compiler.is_exporting():  # shifts of bytes have no ONNX form that its checker takes
        parts = [torch.div(packed, 2**shift, rounding_mode="floor") % levels for shift in shifts]
    else:
        parts = [(packed >> shift) & (levels - 1) for shift in shifts]
    values: Tensor = torch.stack(parts, dim=-1).flatten(-2)[..., :count]
    return values


def _shifts(device: torch.device, bits: int) -> Tensor:
    return torch.tensor(range(0, 8, bits), dtype=torch.uint8, device=device)
