"""Rotary position embedding: pairs of a head's dimensions are turned by an angle that grows with the position.

The product of a turned query and a turned key depends on the distance of their tokens alone. Not here: what a scaling
for long texts does to the frequencies (`rotary_scaling`).
Source: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding", arXiv:2104.09864.
Counterpart: the rotary embeddings of transformers' Llama (halves) and DeepSeek (pairs).
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepseek.nn.rotary_scaling import RotaryScaling

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each (time, dim / 2) of float32."""


def rotary_frequencies(dim: int, base: float, device: torch.device, scaling: RotaryScaling | None = None) -> Tensor:
    """Return the angle, in radians, that each of the dim / 2 pairs turns from one token to the next, in float32."""
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
    frequencies = 1.0 / base**exponent
    return frequencies if scaling is None else scaling.scale(frequencies, base)


def rotation(position: Tensor, dim: int, base: float, scaling: RotaryScaling | None = None) -> Rotation:
    """Return cosines and sines for `position` (time,) of integers.

    They are computed where they are needed and are no buffer: a buffer would be rounded with a bfloat16 model, and
    would be missing from one that was made on the meta device.
    """
    angle = position[:, None].float() * rotary_frequencies(dim, base, position.device, scaling)
    cos, sin = angle.cos(), angle.sin()
    amplitude = 1.0 if scaling is None else scaling.amplitude
    return (cos, sin) if amplitude == 1.0 else (cos * amplitude, sin * amplitude)


def rotate_halves(x: Tensor, turn: Rotation) -> Tensor:
    """Turn `x` (..., time, dim), of which dimension i and dimension i + dim / 2 are a pair (Llama, Qwen2)."""
    cos, sin = turn
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def rotate_pairs(x: Tensor, turn: Rotation) -> Tensor:
    """Turn `x` (..., time, dim), of which dimensions 2i and 2i + 1 are a pair (the paper, DeepSeek)."""
    cos, sin = turn
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2).to(x.dtype)
