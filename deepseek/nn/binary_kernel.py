"""The product of signs by XOR and popcount: our C++ kernel as torch sees it. None where no compiler is present.

Source: Rastegari et al. 2016, "XNOR-Net", arXiv:1603.05279, section 3.2. Not here: compiling (`native_build`), what a
layer does without the kernel (`binary_layers`).
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.nn.conv_shape import ConvShape
from deepseek.nn.int4_kernel import version
from deepseek.nn.native_build import load_library
from deepseek.nn.packed_bits import unpack

_WORD, _BLOCK = 64, 32  # the layout of binary_kernel.cpp
_SERIAL = 1 << 17  # below so many steps of the kernel, waking other threads costs more than it saves


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "batch channels words height width pad_rows pad_columns kernel_rows kernel_columns stride_rows "
            "stride_columns dilation_rows dilation_columns out_channels out_height out_width"
        ).split()
    ]


class _Tensors(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p) for name in ("input", "weight", "ones", "weight_scale", "input_scale", "bias", "output")
    ]


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernel; the first call on a machine compiles it, in about a second."""
    return load_library(Path(__file__).with_suffix(".cpp")).handle


def describe_kernel() -> str:
    """Return which form of the kernel runs here, or why there is none."""
    found = load_library(Path(__file__).with_suffix(".cpp"))
    if found.handle is None:
        return f"none: {found.reason}"
    return "AVX-512 VPOPCNTDQ" if found.handle.binary_kernel_form() == 2 else "plain C++"


Stored = tuple[Tensor, Tensor, Tensor | None]
"""Weight bits, scales and bias of a layer."""


class PackedSigns(NamedTuple):
    """An input as the kernel reads it."""

    library: ctypes.CDLL
    bits: Tensor
    magnitude: Tensor
    """The mean magnitude of each pixel, fp32 `(batch, height, width)`."""
    shape: ConvShape
    geometry: _Shape


def pack_signs(x: Tensor, shape: ConvShape) -> PackedSigns | None:
    """Return the signs and magnitudes of `x` fp32 `(batch, height, width, in_channels)` for a product of `shape`.

    None where there is no kernel for it: no compiler, another device, several groups, a gradient or a traced graph.
    """
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        return None
    native = library() if shape.groups == 1 and x.device.type == "cpu" else None
    if native is None:
        return None
    values, size = x.contiguous(), _geometry(x, shape)
    bits = torch.empty(size.batch, size.height, size.width, size.words, dtype=torch.int64)
    magnitude = torch.empty(x.shape[:3])
    places = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (values, bits, magnitude))
    native.binary_pack(*places, ctypes.byref(size), _threads(values.numel()))
    return PackedSigns(native, bits, magnitude, shape, size)


class BinaryKernel:
    """The rearranged weight of one layer, made at its first product and again when the stored one changes."""

    def __init__(self) -> None:
        self._made_of: Stored | None = None
        self._versions: tuple[int, ...] = ()
        self._buffers: tuple[Tensor, Tensor, Tensor, Tensor | None] | None = None

    def convolve(self, signs: PackedSigns, stored: Stored, input_scale: Tensor) -> Tensor:
        """Return the layer's output, fp32 `(batch, height, width, out_channels)`.

        `stored`: weight bits uint8 `(out_channels, row / 8)`, scale and bias fp32 `(out_channels,)`; `input_scale`
        fp32, one for each output pixel.
        """
        shape, size = signs.shape, signs.geometry
        weight, ones, scale, bias = self._rearranged(shape, stored)
        y = torch.empty(size.batch, size.out_height, size.out_width, shape.out_channels)
        factors = input_scale.contiguous()
        parts = (signs.bits, weight, ones, scale, factors, bias, y)
        tensors = _Tensors(*(None if part is None else part.data_ptr() for part in parts))
        threads = _threads(y.numel() * shape.weights_per_channel // 8)
        signs.library.binary_convolve(ctypes.byref(tensors), ctypes.byref(size), threads)
        return y

    def _rearranged(self, shape: ConvShape, stored: Stored) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        versions = tuple(version(tensor) for tensor in stored)
        fresh = self._made_of is not None and all(a is b for a, b in zip(stored, self._made_of, strict=True))
        if self._buffers is None or not fresh or versions != self._versions:
            weight, scale, bias = stored
            words, ones = _blocks(weight, shape)
            extra = (0, -shape.out_channels % _BLOCK)
            shift = None if bias is None else F.pad(bias.to(torch.float32), extra)
            self._buffers = words, ones, F.pad(scale.to(torch.float32), extra), shift
            self._made_of, self._versions = stored, versions
        return self._buffers


def _threads(steps: int) -> int:
    return torch.get_num_threads() if steps > _SERIAL else 1


def _geometry(x: Tensor, shape: ConvShape) -> _Shape:
    batch, height, width, channels = x.shape
    (pad_rows, pad_columns), words = shape.padding, -(-channels // _WORD)
    out = shape.output_size(height, width)
    padded = height + 2 * pad_rows, width + 2 * pad_columns
    steps = (*shape.kernel_size, *shape.stride, *shape.dilation)
    return _Shape(batch, channels, words, *padded, pad_rows, pad_columns, *steps, shape.out_channels, *out)


def _blocks(weight: Tensor, shape: ConvShape) -> tuple[Tensor, Tensor]:
    """Return the bits as int64 `(blocks, taps, words, 32)` and the ones of each tap as int64 `(blocks, taps, 32)`."""
    channels, taps = shape.in_channels, shape.kernel_size[0] * shape.kernel_size[1]
    bits = unpack(weight, 1, shape.weights_per_channel).reshape(shape.out_channels, channels, taps).transpose(1, 2)
    padded = F.pad(bits, (0, -channels % _WORD, 0, 0, 0, -shape.out_channels % _BLOCK)).to(torch.int64)
    words = (padded.reshape(*padded.shape[:2], -1, _WORD) << torch.arange(_WORD)).sum(
        dim=3
    )  # (rows, taps, words); bit 63 wraps
    ones = padded.sum(dim=2)
    order = words.reshape(-1, _BLOCK, *words.shape[1:]).permute(0, 2, 3, 1).contiguous()
    return order, ones.reshape(-1, _BLOCK, taps).transpose(1, 2).contiguous()
