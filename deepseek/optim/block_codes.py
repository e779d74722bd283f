"""Numbers in 8 bits: blocks of 256 share a float32 scale, and each number is an index into a table of 256 values.

The table is dynamic: a run of zero bits is a decimal exponent, the bits behind it a fraction, so that values over seven
decades keep a usable precision. The nearest value is looked up from the upper half of the float's bits, 16 of 32: many
times faster than a search, and at most 1/128 of the number further off than the nearest.
Source: Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861. Ours: a positive number
never becomes 0 in the unsigned table, since Adam divides by its root.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

BLOCK = 256


@functools.cache
def dynamic_table(signed: bool, device: torch.device) -> Tensor:
    """Return the 256 values in [-1, 1] (unsigned: [0, 1]), float32, rising."""
    values = [0.0, 1.0]
    bits = 6 if signed else 7
    for exponent in range(7):
        parts = 2 ** (bits - exponent)
        middles = [10.0**-exponent * (0.1 + 0.9 * (part + 0.5) / parts) for part in range(parts)]
        values += middles + ([-value for value in middles] if signed else [])
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


@functools.cache
def _code_of_upper_bits(signed: bool, device: torch.device) -> Tensor:
    """Return the code, uint8, of each upper half of a float32 in [-1, 1]; halves of negative floats come first."""
    table = dynamic_table(signed, torch.device("cpu"))
    upper = torch.arange(-32768 if signed else 0, 32768, dtype=torch.int32)
    middle = ((upper << 16) | 0x8000).view(torch.float32).nan_to_num(0.0).clamp_(-1.0, 1.0)
    codes = torch.bucketize(middle, (table[1:] + table[:-1]) / 2)
    if not signed:
        codes[1:].clamp_(min=1)  # 0 stands for zero alone
    return codes.to(torch.uint8).to(device)


def encode(values: Tensor, codes: Tensor, scales: Tensor, *, signed: bool) -> None:
    """Write `values`, (numbers,) float32, into `codes`, (numbers,) uint8, and `scales`, (blocks,) float32.

    Values are not negative unless `signed`. The last block may be short. `values` serves as working memory.
    """
    whole = values.numel() // BLOCK
    if whole:
        _encode(values[: whole * BLOCK], codes[: whole * BLOCK], scales[:whole], signed)
    if values.numel() % BLOCK:
        _encode(values[whole * BLOCK :], codes[whole * BLOCK :], scales[whole:], signed)


def decode(codes: Tensor, scales: Tensor, *, signed: bool) -> Tensor:
    """Return the numbers, (numbers,) float32, that `encode` wrote."""
    values = dynamic_table(signed, codes.device).index_select(0, codes.int())
    whole = values.numel() // BLOCK
    if whole:
        values[: whole * BLOCK].view(whole, BLOCK).mul_(scales[:whole, None])
    if values.numel() % BLOCK:
        values[whole * BLOCK :].mul_(scales[whole:])
    return values


def _encode(values: Tensor, codes: Tensor, scales: Tensor, signed: bool) -> None:
    blocks = values.view(scales.numel(), -1)
    torch.amax(blocks.abs() if signed else blocks, dim=1, out=scales)
    blocks.div_(scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None])
    upper = values.view(torch.int32).bitwise_right_shift_(16)
    if signed:
        upper.add_(32768)
    codes.copy_(_code_of_upper_bits(signed, values.device).index_select(0, upper))
