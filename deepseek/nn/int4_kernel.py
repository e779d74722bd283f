"""torch's 4-bit matrix product on the CPU, for weights stored as `Int4Linear` or `TernaryLinear` store them.

The kernel wants the weight in an order of its own: made at the first product, kept beside the stored one, made again
when that changes. It computes in bfloat16 (torch's fp32 form of it is a plain loop, a hundred times slower), which is
why `int4_weights.choose_scales` keeps to scales that bfloat16 holds. Not here: the layers.
"""

from __future__ import annotations

import functools
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.nn.int4_weights import MIDDLE

_GROUPS = (256, 128, 64, 32)  # the group sizes the kernel has
_CHANNELS = 16  # it computes so many output channels at once
_ROWS = 64  # above, dequantizing once and multiplying in bfloat16 is faster (measured on Zen 5)


class Int4Weight(Protocol):
    """What the kernel reads of a layer."""

    in_features: int
    out_features: int
    group_size: int | None
    weight: Tensor
    scale: Tensor

    @property
    def zero_point(self) -> Tensor | None:
        """Levels that mean zero, one for each scale; None means the middle."""

    @property
    def bias(self) -> Tensor | None:
        """Added to the product."""

    def levels(self) -> Tensor:
        """Return the levels 0..15 as uint8 `(out_features, in_features)`."""

    def stored_weight(self) -> Tensor:
        """Return the fp32 weight `(out_features, in_features)` that the levels stand for."""


def product(layer: Int4Weight, kernel: Int4Kernel, rows: Tensor) -> Tensor:
    """Return fp32 `(rows, out_features)` of `rows` fp32 `(rows, in_features)`, the fastest way that fits.

    Under a gradient, in a traced graph and on other devices that is fp32 on the dequantized weight; else the inputs are
    rounded to bfloat16 where that is fast.
    """
    traced = torch.compiler.is_compiling() or (torch.is_grad_enabled() and rows.requires_grad)
    if traced or rows.device.type != "cpu":
        return F.linear(rows, layer.stored_weight(), None if layer.bias is None else layer.bias.to(torch.float32))
    if kernel.takes(layer, rows.shape[0]):
        y = kernel.multiply(layer, rows)
    else:
        y = F.linear(rows.to(fast_float()), layer.stored_weight().to(fast_float())).to(torch.float32)
    return y if layer.bias is None else y + layer.bias


class Int4Kernel:
    """The rearranged weight of one layer."""

    def __init__(self) -> None:
        self._made_of: tuple[Tensor, Tensor, Tensor | None] | None = None
        self._versions: tuple[int, ...] = ()
        self._weight: Tensor | None = None
        self._scales: Tensor | None = None
        self._group = 0

    def takes(self, layer: Int4Weight, rows: int) -> bool:
        """Return whether this is the fast way for `layer` and so many rows of input."""
        return rows <= _ROWS and _group(layer) is not None and kernel_is_right()

    def multiply(self, layer: Int4Weight, rows: Tensor) -> Tensor:
        """Return fp32 `(rows, out_features)`: `rows` fp32 `(rows, in_features)` times the weight, rounded to bf16."""
        sources = (layer.weight, layer.scale, layer.zero_point)
        versions = tuple(version(tensor) for tensor in sources)
        fresh = self._made_of is not None and all(a is b for a, b in zip(sources, self._made_of, strict=True))
        if not fresh or versions != self._versions:
            self._rearrange(layer)
            self._made_of, self._versions = sources, versions
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows.to(torch.bfloat16).contiguous(), self._weight, self._group, self._scales
        )
        return product[:, : layer.out_features].to(torch.float32)  # type: ignore[no-any-return]

    def _rearrange(self, layer: Int4Weight) -> None:
        self._group = group = _group(layer) or 0
        extra = -layer.out_features % _CHANNELS
        levels = F.pad(layer.levels(), (0, 0, 0, extra), value=MIDDLE).to(torch.int32)
        scale = layer.scale.to(torch.float32).reshape(layer.out_features, -1)
        repeats, count = _own_group(layer) // group, layer.in_features // group
        shift = torch.zeros_like(scale) if layer.zero_point is None else (MIDDLE - layer.zero_point.float()) * scale
        pairs = torch.stack([scale, shift], dim=2).repeat_interleave(repeats, dim=1)[:, :count]
        self._scales = F.pad(pairs, (0, 0, 0, 0, 0, extra)).transpose(0, 1).contiguous().to(torch.bfloat16)
        self._weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 2)


def _own_group(layer: Int4Weight) -> int:
    width = layer.in_features
    return width if layer.group_size is None else min(width, layer.group_size)


def _group(layer: Int4Weight) -> int | None:
    """Return the kernel's group size with which the scales of `layer` can be told, None where there is none."""
    own, width = _own_group(layer), layer.in_features
    return next((size for size in _GROUPS if own % size == 0 and width % size == 0), None)


def version(tensor: Tensor | None) -> int:
    """Return the number that changes when a tensor is written in place; -1 where torch keeps none."""
    return -1 if tensor is None or tensor.is_inference() else tensor._version


@functools.cache
def fast_float() -> torch.dtype:
    """Return the type in which this CPU multiplies fastest: bfloat16 where it has instructions for it, else float32."""
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


@functools.cache
def kernel_is_right() -> bool:
    """Return whether this build of torch has the kernel, and whether it answers as its formula says."""
    if not torch.cpu._is_avx2_supported():
        return False  # elsewhere it is a plain loop
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 16, (16, 64), generator=generator, dtype=torch.int32, device="cpu")
    scales = torch.rand(2, 16, 2, generator=generator, device="cpu").to(torch.bfloat16)
    x = torch.randn(3, 64, generator=generator, device="cpu").to(torch.bfloat16)
    try:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 2)
        found = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, 32, scales).to(torch.float32)
    except (RuntimeError, AttributeError):
        return False
    each = scales.to(torch.float32).repeat_interleave(32, dim=0).transpose(0, 1)
    wanted = x.to(torch.float32) @ ((levels - MIDDLE) * each[..., 0] + each[..., 1]).t()
    return bool(torch.allclose(found, wanted, rtol=0.02, atol=0.2))
