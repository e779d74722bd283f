"""Products of a few rows with the big weights of a language model, at the speed of reading the weights.

A chain of steps (look up, normalise, multiply, activate or gate, add, rotate, attend) is one call of our C++ kernel: a
whole decoder can be one. A row's result is the same to the bit whatever other rows there are, from one row to a whole
prompt; without a compiler the same steps run in torch, where it is the same up to rounding.
Rows are fp32. bfloat16 weights multiply rows rounded to bfloat16, int8 weights rows as integers of 15 bits with one
scale, 4-bit weights rows as int8 with a scale for each 32 inputs; sums are fp32 or exact integers.
Not here: weights (`row_weight`), layers (`row_linear`), blocks (`row_blocks`), compiling (`native_build`).
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
from deepseek.nn.native_build import load_library
from deepseek.nn.paged_attention import AttentionCall, NativeTexts, Texts, described
from deepseek.nn.row_weight import RowForm, RowWeight

Activation = Literal["none", "gelu", "silu"]
"""`gelu` is the tanh form."""

_SERIAL = 1 << 17  # below so many multiplications, waking other threads costs more than it saves


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


class LookUp(NamedTuple):
    """A step: the weight's channels named by `ids`, int64 (rows, 1), plus `residual`; not for 4 bits."""

    weight: RowWeight
    ids: int
    target: int
    residual: int | None = None


class Attend(NamedTuple):
    """A step: write the keys and values of `source` into pages, and put into `target` the look of its queries at them.

    `source` has `heads` queries, then `kv_heads` keys, then as many values, each `dim` wide; see `paged_attention` for
    the pages and for `Texts`, which the chain is given for it.
    """

    source: int
    target: int
    heads: int
    kv_heads: int
    dim: int
    keys: Tensor
    values: Tensor


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
        ("ids", ctypes.c_void_p),
        ("attention", ctypes.POINTER(AttentionCall)),
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
    """Steps over rows, one after the other, in one call. The weights and pages must stay where they are."""

    def __init__(self, steps: Sequence[Multiply | Rotate | LookUp | Attend]) -> None:
        self.steps = tuple(steps)
        self._work = sum(
            step.weight.in_features * step.weight.out_features for step in steps if isinstance(step, Multiply)
        )
        self._texts = NativeTexts()
        self._native = (_Step * len(self.steps))(*(_native_step(step, self._texts) for step in self.steps))
        self._lent: list[tuple[int, int]] = []

    def run(self, tensors: Sequence[Tensor], texts: Texts | None = None) -> None:
        """Run the steps on `tensors`, on the CPU: fp32 `(rows, width)`, contiguous but for the distance of rows.

        `texts`: where the rows belong, for `Attend`, which is for the kernel alone.
        """
        native = library() if tensors[0].is_cpu else None
        if native is None:
            self._run_in_torch(tensors)
            return
        lent = [(tensor.data_ptr(), tensor.stride(0)) for tensor in tensors]
        if lent != self._lent:
            for native_step, step in zip(self._native, self.steps, strict=True):
                _lend(native_step, step, lent)
            self._lent = lent
        if texts is not None:
            texts.describe(self._texts)
        rows = tensors[0].shape[0]
        threads = torch.get_num_threads() if self._work * rows > _SERIAL else 1
        native.row_chain(self._native, *(ctypes.c_int64(number) for number in (len(self.steps), rows, threads)))

    def _run_in_torch(self, tensors: Sequence[Tensor]) -> None:
        for step in self.steps:
            if isinstance(step, Rotate):
                heads = torch.unflatten(tensors[step.target][:, : step.width], 1, (-1, step.head_dim))
                cosine, sine = (tensors[place].unsqueeze(1) for place in (step.cosine, step.sine))
                first, second = heads.chunk(2, dim=-1)
                turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
                heads.copy_(turned)
                continue
            if isinstance(step, Attend):
                raise ModelError("attention in a chain needs the kernel", fix="use paged_attention")
            if isinstance(step, LookUp):
                x = step.weight.rows(tensors[step.ids][:, 0])
                tensors[step.target].copy_(x if step.residual is None else tensors[step.residual] + x)
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
    values = weight.rows()
    if weight.form == "bf16":
        y = F.linear(x.to(torch.bfloat16), values.to(torch.bfloat16)).to(torch.float32)
    elif weight.form == "int8":
        unit = x.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / (127 * 128)
        y = F.linear(torch.round(x / unit), values) * unit
    else:
        y = F.linear(x, values)
    return y if weight.bias is None else y + weight.bias


def _normalised(x: Tensor, norm: RowNorm) -> Tensor:
    if norm.kind == "rms":
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _native_weight(weight: RowWeight | None) -> _Weight:
    return _Weight() if weight is None else _Weight(*(_pointer(tensor) for tensor in weight[3:]))


def _native_step(step: Multiply | Rotate | LookUp | Attend, texts: NativeTexts) -> _Step:
    """Return a step without the places of the tensors, which `_lend` sets."""
    if isinstance(step, Rotate):
        return _Step(kind=1, inputs=step.width, outputs=step.head_dim)
    if isinstance(step, Attend):
        call = AttentionCall(
            texts=ctypes.pointer(texts), keys=described(step.keys), values=described(step.values),
            block_size=step.keys.shape[1], heads=step.heads, kv_heads=step.kv_heads,
            bf16=step.keys.dtype == torch.bfloat16, scale=step.dim**-0.5,
        )  # fmt: skip
        return _Step(kind=3, attention=ctypes.pointer(call))
    form, weight = get_args(RowForm).index(step.weight.form), _native_weight(step.weight)
    native = _Step(form=form, inputs=step.weight.in_features, outputs=step.weight.out_features, weight=weight)
    if isinstance(step, LookUp):
        native.kind = 2
        return native
    native.up, native.same_input = _native_weight(step.up), step.again
    native.activation = get_args(Activation).index(step.activation)
    if step.norm is not None:
        native.norm, native.norm_eps = 1 if step.norm.kind == "layer" else 2, step.norm.eps
        native.norm_weight, native.norm_bias = _pointer(step.norm.weight), _pointer(step.norm.bias)
    return native


def _lend(native: _Step, step: Multiply | Rotate | LookUp | Attend, lent: Sequence[tuple[int, int]]) -> None:
    """Tell a step where its tensors lie; `lent`: the address and row length of each."""
    if isinstance(step, Attend):
        call, (start, stride) = native.attention.contents, lent[step.source]
        heads = (0, step.heads, step.heads + step.kv_heads)
        for rows, first in zip((call.query, call.new_keys, call.new_values), heads, strict=True):
            rows.data, rows.token, rows.head = start + 4 * first * step.dim, stride, step.dim
        call.output = lent[step.target][0]
        return
    offset = 4 * step.column if isinstance(step, Multiply) else 0
    native.output, native.output_stride = lent[step.target][0] + offset, lent[step.target][1]
    if isinstance(step, Rotate):
        native.norm_weight, native.norm_bias = lent[step.cosine][0], lent[step.sine][0]
        return
    if step.residual is not None:
        native.residual = lent[step.residual][0] + offset
    if isinstance(step, LookUp):
        native.ids = lent[step.ids][0]
    else:
        native.input, native.input_stride = lent[step.source]
