"""Sinusoidal positions: fixed waves in place of a learned table of positions.

Not here: positions that turn queries and keys (rotary), positions that add to attention scores (`relative_bias`), and
what Transformer-XL does with these waves (`relative_attention`).
Sources: Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762; Dai et al. 2019, "Transformer-XL",
arXiv:1901.02860 (the same waves over distances); Radford et al. 2022, arXiv:2212.04356 (Whisper's spacing).
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepseek.errors import ModelError


def relative_position_encoding(pos: Tensor, dim: int) -> Tensor:
    """Return [sin, cos] of pos x 1/10000^(2i/dim) for i = 0 .. dim/2 - 1: (len, dim) in float32.

    `pos` (len,) holds positions or distances, whole or not, of any number type. The sines fill the first half.
    Raises ModelError for an odd `dim` and for positions that are no single row.
    """
    _check_even(dim)
    if pos.dim() != 1:
        raise ModelError("pos has the wrong shape", found=tuple(pos.shape), wanted="(len,)")
    inverse = 1 / (10000 ** (torch.arange(0, dim, 2, device=pos.device).float() / dim))
    angle = pos.float()[:, None] * inverse
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def sinusoidal_positions(length: int, dim: int) -> Tensor:
    """Return [sin, cos] of the positions 0 .. length - 1: (length, dim) in float32, as Whisper's encoder has them.

    The waves reach from 1 to exactly 1/10000 radians a step: 1/10000^(i/(dim/2 - 1)); those of
    `relative_position_encoding` stop one step before that. Raises ModelError for an odd `dim`.
    """
    _check_even(dim)
    step = torch.arange(dim // 2).float() / max(1, dim // 2 - 1)
    angle = torch.arange(length).float()[:, None] * 10000**-step
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def _check_even(dim: int) -> None:
    if dim < 2 or dim % 2:
        raise ModelError("sines and cosines need an even dim", found=dim, wanted=f"{max(2, dim + 1)}, for example")
