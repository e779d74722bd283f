"""Products of a few rows with the big weights of a language model, at the speed of reading the weights.

A chain of steps (normalise, multiply, activate or gate, add, rotate) is one call of our C++ kernel, so that a decoder's
block costs two calls beside attention. A row's result is the same to the bit whatever other rows there are, from one
row to a whole prompt; without a compiler the same steps run in torch, where it is the same up to rounding.
Rows are fp32. bfloat16 weights multiply rows rounded to bfloat16, int8 weights rows as integers of 15 bits with one
scale, 4-bit weights rows as int8 with a scale for each 32 inputs; sums are fp32 or exact integers.
Not here: layers (`row_linear`), blocks (`row_blocks`), compiling (`native_build`).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.nn.int4_weights import MIDDLE, choose_scales, round_to_levels
from deepseek.nn.int8_linear import quantize_rows
from deepseek.nn.native_build import load_library
from deepseek.nn.packed_bits import pack, unpack

RowForm = Literal["fp32", "bf16", "int8", "int4"]
Activation = Literal["none", "gelu", "silu"]
"""`gelu` is the tanh form."""
GROUP = 32
"""Inputs that share a scale of 4-bit weights."""

_PADDED = 128  # the kernel's rows are multiples of it
_SERIAL = 1 << 17  # below so many multiplications, waking other threads costs more than it saves


class RowWeight(NamedTuple):
    """A weight `(out, in)` in one of the forms, with its bias.

    `values`: fp32 or bf16 `(out, in)`; int8 `(out, in)` with `scale` fp32 `(out,)`; uint8 `(out, in / 2)`, the first of
    two inputs in the low half, with `scale` bf16 `(out, in / 32)` and maybe `zero_point` uint8 of that shape (else 8).
    All contiguous; `bias` fp32 `(out,)`.
    """

    form: RowForm
    values: Tensor
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    bias: Tensor | None = None

    @property
    def out_features(self) -> int:
        """The number of channels."""
        return int(self.values.shape[0])

    @property
    def in_features(self) -> int:
        """The number of inputs."""
        return int(self.values.shape[1]) * (2 if self.form == "int4" else 1)

    @classmethod
    def rounded(cls, weight: Tensor, form: RowForm, bias: Tensor | None = None) -> RowWeight:
        """Return a float `weight` `(out, in)` in `form`, to the nearest; what has it already is not copied.

        Raises ModelError for int4 where 32 does not divide the inputs.
        """
        weight, bias = weight.detach(), None if bias is None else bias.detach().to(torch.float32).contiguous()
        if form == "int8":
            return cls(form, *quantize_rows(weight), None, bias)
        if form == "int4":
            if weight.shape[1] % GROUP:
                raise ModelError("4-bit weights come in groups", found=weight.shape[1], wanted=f"a multiple of {GROUP}")
            scale, _ = choose_scales(weight, GROUP, symmetric=True)
            levels = round_to_levels(weight, scale, None, GROUP)
            return cls(form, pack(levels, 4), scale.to(torch.bfloat16).contiguous(), None, bias)
        return cls(form, weight.to(torch.float32 if form == "fp32" else torch.bfloat16).contiguous(), None, None, bias)

    def tidy(self) -> RowWeight:
        """Return the same weight with each tensor contiguous and each scale in its format."""
        scale = None if self.scale is None else self.scale.to(torch.bfloat16 if self.form == "int4" else torch.float32)
        tensors = (self.values, scale, self.zero_point, self.bias)
        return RowWeight(self.form, *(None if x is None else x.contiguous() for x in tensors))  # type: ignore[arg-type]

    def rows(self, ids: Tensor | slice = slice(None)) -> Tensor:
        """Return the fp32 weights of the channels `ids`, `(..., in)`."""
        values = self.values[ids]
        if self.form == "int8" and self.scale is not None:
            return values.to(torch.float32) * self.scale[ids].unsqueeze(-1)
        if self.form == "int4" and self.scale is not None:
            levels = unpack(values.reshape(-1, values.shape[-1]), 4, self.in_features).to(torch.float32)
            zero = MIDDLE if self.zero_point is None else self.zero_point[ids].to(torch.float32).unsqueeze(-1)
            groups = levels.reshape(*values.shape[:-1], -1, GROUP) - zero
            return (groups * self.scale[ids].to(torch.float32).unsqueeze(-1)).flatten(-2)
        return values.to(torch.float32)


class RowNorm(NamedTuple):
    """A norm of the rows before a product; `layer` subtracts the mean, `rms` does not."""

    kind: Literal["layer", "rms"]
    weight: Tensor
    bias: Tensor | None
    eps: float


class Multiply(NamedTuple):
    """A step: `activation(norm(source) weight^T + bias)`, times the same with `up` where given, plus `residual`.

    `source`, `target` and `residual` are places in the list of tensors that a chain is given; the product stands in
    the target's columns from `column` on. `again`: the source is that of the step before, with the same norm and form.
    """

    weight: RowWeight
    source: int
    target: int
    column: int = 0
    norm: RowNorm | None = None
    activation: Activation = "none"
    up: RowWeight | None = None
    residual: int | None = None
    again: bool = False


class Rotate(NamedTuple):
    """A step: halves of the first `width` columns' heads of `target` turned by cosines and sines `(rows, dim / 2)`."""

    target: int
    width: int
    head_dim: int
    cosine: int
    sine: int


class _Weight(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("values", "scale", "zero_point", "bias")]


class _Step(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("kind", "form", "inputs", "outputs")),
        *((name, _Weight) for name in ("weight", "up")),
        *((name, ctypes.c_int64) for name in ("activation", "norm")),
        *((name, ctypes.c_void_p) for name in ("norm_weight", "norm_bias")),
        ("norm_eps", ctypes.c_double),
        ("input", ctypes.c_void_p),
        ("input_stride", ctypes.c_int64),
        ("residual", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("output_stride", ctypes.c_int64),
        ("same_input", ctypes.c_int64),
    ]


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernel; the first call on a machine compiles it, in a few seconds."""
    return load_library(Path(__file__).with_suffix(".cpp")).handle


def describe_kernel() -> str:
    """Return which form of the kernel runs here, or why there is none."""
    found = load_library(Path(__file__).with_suffix(".cpp"))
    if found.handle is None:
        return f"none: {found.reason}"
    return ("plain C++", "AVX-512", "AVX-512 with BF16 and VNNI")[found.handle.row_products_form() - 1]


class RowChain:
    """Steps over rows, one after the other, in one call. The weights must stay where they are."""

    def __init__(self, steps: Sequence[Multiply | Rotate]) -> None:
        self.steps = tuple(steps)
        self._work = sum(
            step.weight.in_features * step.weight.out_features for step in steps if isinstance(step, Multiply)
        )
        self._native = (_Step * len(self.steps))(*(_native_step(step) for step in self.steps))
        # which field of which step is a pointer into which tensor, and where the tensor's row length goes
        self._places = [place for index, step in enumerate(self.steps) for place in _places(index, step)]

    def run(self, tensors: Sequence[Tensor]) -> None:
        """Run the steps on `tensors`: fp32 on the CPU, `(rows, width)`, contiguous but for the distance of rows."""
        native = library() if tensors[0].is_cpu else None
        if native is None:
            self._run_in_torch(tensors)
            return
        starts, steps = [tensor.data_ptr() for tensor in tensors], self._native
        for index, field, place, offset, stride in self._places:
            setattr(steps[index], field, starts[place] + offset)
            if stride:
                setattr(steps[index], stride, tensors[place].stride(0))
        rows = tensors[0].shape[0]
        threads = torch.get_num_threads() if self._work * rows > _SERIAL else 1
        native.row_chain(steps, *(ctypes.c_int64(number) for number in (len(self.steps), rows, threads)))

    def _run_in_torch(self, tensors: Sequence[Tensor]) -> None:
        for step in self.steps:
            if isinstance(step, Rotate):
                heads = torch.unflatten(tensors[step.target][:, : step.width], 1, (-1, step.head_dim))
                cosine, sine = (tensors[place].unsqueeze(1) for place in (step.cosine, step.sine))
                first, second = heads.chunk(2, dim=-1)
                turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
                heads.copy_(turned)
                continue
            x = tensors[step.source] if step.norm is None else _normalised(tensors[step.source], step.norm)
            y = multiply_in_torch(x, step.weight)
            if step.activation != "none":
                y = F.silu(y) if step.activation == "silu" else F.gelu(y, approximate="tanh")
            if step.up is not None:
                y = y * multiply_in_torch(x, step.up)
            target = tensors[step.target][:, step.column : step.column + y.shape[1]]
            if step.residual is not None:
                y = y + tensors[step.residual][:, step.column : step.column + y.shape[1]]
            target.copy_(y)


def multiply_in_torch(x: Tensor, weight: RowWeight) -> Tensor:
    """Return `x` fp32 `(rows, in)` times the weight plus its bias as torch does it, the inputs rounded alike."""
    if weight.form == "bf16":
        y = F.linear(x.to(torch.bfloat16), weight.values).to(torch.float32)
    elif weight.form == "int8" and weight.scale is not None:
        limit = min(32767, (2**31 - 1) * 16 // (127 * (-(-x.shape[1] // _PADDED) * _PADDED)))
        most = x.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
        integers = torch.round(x * (limit / most))
        y = F.linear(integers, weight.values.to(torch.float32)) * weight.scale * (most / limit)
    else:
        y = F.linear(x, weight.rows())
    return y if weight.bias is None else y + weight.bias


def _normalised(x: Tensor, norm: RowNorm) -> Tensor:
    if norm.kind == "rms":
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _native_weight(weight: RowWeight | None) -> _Weight:
    return _Weight() if weight is None else _Weight(*(_pointer(tensor) for tensor in weight[1:]))


def _native_step(step: Multiply | Rotate) -> _Step:
    if isinstance(step, Rotate):
        return _Step(kind=1, inputs=step.width, outputs=step.head_dim)
    native = _Step(
        form=get_args(RowForm).index(step.weight.form),
        inputs=step.weight.in_features,
        outputs=step.weight.out_features,
        weight=_native_weight(step.weight),
        up=_native_weight(step.up),
        activation=get_args(Activation).index(step.activation),
        same_input=step.again,
    )
    if step.norm is not None:
        native.norm, native.norm_eps = 1 if step.norm.kind == "layer" else 2, step.norm.eps
        native.norm_weight, native.norm_bias = _pointer(step.norm.weight), _pointer(step.norm.bias)
    return native


def _places(index: int, step: Multiply | Rotate) -> list[tuple[int, str, int, int, str]]:
    """Return (step, field, tensor, bytes from its start, field of its row length) for each pointer of a step."""
    if isinstance(step, Rotate):
        turn = [(index, "norm_weight", step.cosine, 0, ""), (index, "norm_bias", step.sine, 0, "")]
        return [(index, "output", step.target, 0, "output_stride"), *turn]
    offset = 4 * step.column
    found = [
        (index, "input", step.source, 0, "input_stride"),
        (index, "output", step.target, offset, "output_stride"),
    ]
    return found if step.residual is None else [*found, (index, "residual", step.residual, offset, "")]
