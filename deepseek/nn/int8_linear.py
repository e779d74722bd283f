"""A linear layer with an int8 weight: the arithmetic, not the choice of scales (that is `deepseek.quantization`).

Weights are symmetric, one scale for each output channel (or for groups of a row, `weight_only`). Activations are left
alone (`weight_only`), quantized for each token when they arrive (`dynamic`), or with ranges found by calibration
(`static`). Where the CPU multiplies int8 exactly, `dynamic` and `static` do; elsewhere the same integers are multiplied
in floating point.
Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", arXiv:1712.05877.
"""

from __future__ import annotations

import functools
from typing import Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.errors import ModelError, did_you_mean

Int8Mode = Literal["dynamic", "weight_only", "static"]

_TINY = 1e-30  # keeps an all-zero row from dividing by zero
_PACKED_ROWS = 16  # up to here torch's weight-only kernel beats dequantizing the whole weight (measured on Zen 5)
_PACKED_MULTIPLE = 32  # that kernel reads its input in such blocks, unchecked: beyond the end where one is not full


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a float tensor symmetrically, one scale for each index of its first dimension.

    Returns (int8 tensor of the same shape with values -127..127, float32 scales of shape (rows,)).
    """
    values = weight.detach().to(torch.float32)
    scale = values.reshape(values.shape[0], -1).abs().amax(dim=1).clamp_min(_TINY) / 127
    shape = (-1,) + (1,) * (values.dim() - 1)
    return torch.round(values / scale.reshape(shape)).to(torch.int8), scale


def quantize_groups(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Quantize a float matrix `(rows, columns)` symmetrically, one scale for each `group_size` weights of a row.

    Returns (int8 matrix, float32 scales `(rows, groups)`); the last group may be shorter.
    """
    values = weight.detach().to(torch.float32)
    padded = torch.unflatten(F.pad(values, (0, -values.shape[1] % group_size)), 1, (-1, group_size))
    scale = padded.abs().amax(dim=2).clamp_min(_TINY) / 127
    return torch.round(values / spread_groups(scale, group_size, values.shape[1])).to(torch.int8), scale


def quantize_tensor(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a float tensor symmetrically with one scale. Returns as `quantize_rows` does, the scales all equal."""
    values = weight.detach().to(torch.float32)
    scale = values.abs().amax().clamp_min(_TINY) / 127
    return torch.round(values / scale).to(torch.int8), scale.repeat(values.shape[0])


def spread_groups(scale: Tensor, group_size: int, columns: int) -> Tensor:
    """Return the scale of each weight, `(rows, columns)`, from that of each group, `(rows, groups)`."""
    return scale.repeat_interleave(group_size, dim=1)[:, :columns]


def quantize_tokens(x: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantize float32 activations `(rows, features)`, one scale for each row.

    Returns (integers -128..127 as float32, scale `(rows, 1)`, zero point `(rows, 1)` as float32 or None if symmetric);
    the value meant is `(integer - zero_point) * scale`. A row with NaN or infinity keeps a non-finite scale.
    """
    if symmetric:
        scale = x.abs().amax(dim=1, keepdim=True).clamp_min(_TINY) * (1 / 127)
        return (x / scale).round_(), scale, None
    low, high = x.amin(dim=1, keepdim=True).clamp_max(0), x.amax(dim=1, keepdim=True).clamp_min(0)
    scale = (high - low).clamp_min(_TINY) / 255
    zero_point = torch.round(-128 - low / scale)
    return (x / scale).round_().add_(zero_point).clamp_(-128, 127), scale, zero_point


def quantize_fixed(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Quantize float32 activations with a calibrated scale and zero point to integers -128..127 as float32.

    What lies outside the calibrated range is clipped, infinity with it.
    """
    return (x / scale).round_().add_(zero_point).clamp_(-128, 127)


def register_optional(module: nn.Module, name: str, tensor: Tensor | None) -> None:
    """Register a buffer, or set the name to None: torch.export miscounts buffers that are None."""
    if tensor is None:
        setattr(module, name, None)
    else:
        module.register_buffer(name, tensor)


def check_mode(mode: str) -> Int8Mode:
    """Return `mode` if it is one of ours. Raises ModelError with the nearest name."""
    for known in get_args(Int8Mode):
        if mode == known:
            return known  # type: ignore[no-any-return]
    raise ModelError("unknown int8 mode", found=repr(mode), fix=did_you_mean(str(mode), get_args(Int8Mode)))


@functools.cache
def integer_product_is_exact() -> bool:
    """Return whether this CPU multiplies int8 matrices without saturating (old ones add pairs in 16 bits)."""
    left = torch.full((17, 64), 127, dtype=torch.int8, device="cpu")
    right = torch.full((64, 16), 127, dtype=torch.int8, device="cpu")
    left[1], right[:, 1] = -127, -127
    product = torch._int_mm(left, right)
    return torch.equal(product.to(torch.float64), left.to(torch.float64) @ right.to(torch.float64))


@functools.cache
def _bf16_is_fast() -> bool:
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


class Int8Linear(nn.Module):
    """`nn.Linear` with an int8 weight. Input `(..., in_features)` fp32, bf16 or fp16; output of the same dtype.

    State dict: `weight` int8 `(out_features, in_features)`, `scale` fp32 `(out_features,)`, or `(out_features, groups)`
    with a `group_size` (`weight_only`), `bias` fp32 if there is one; `static` adds `input_scale` fp32 and
    `input_zero_point` fp32 (scalars), asymmetric modes `channel_sum` fp32 `(out_features,)`, the sum of each channel's
    weights, which undoes the zero point.

    Rounding: integer products are exact, the rest is fp32. `weight_only` rounds fp32 activations to bf16 on CPUs where
    that is the fast path. Gradients reach the input straight-through, never the weight.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None
    channel_sum: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        mode: Int8Mode = "dynamic",
        symmetric: bool = True,
        device: torch.device | str | None = None,
        group_size: int | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.mode, self.symmetric, self.group_size = check_mode(mode), symmetric, group_size
        if group_size is not None and (mode != "weight_only" or group_size < 1):
            raise ModelError("groups are for weight_only, with a positive size", found=f"{group_size} with {mode}")
        self._integer_product = integer_product_is_exact()  # asked here: a compiler can't trace the question
        self._fast_float = torch.bfloat16 if _bf16_is_fast() else torch.float32
        static = mode == "static"
        shifted = mode != "weight_only" and not symmetric
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8, device=device))
        groups = () if group_size is None else (-(-in_features // group_size),)
        self.register_buffer("scale", torch.ones(out_features, *groups, device=device))
        register_optional(self, "bias", torch.zeros(out_features, device=device) if bias else None)
        register_optional(self, "input_scale", torch.ones((), device=device) if static else None)
        register_optional(self, "input_zero_point", torch.zeros((), device=device) if static else None)
        register_optional(self, "channel_sum", torch.zeros(out_features, device=device) if shifted else None)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, mode: Int8Mode = "dynamic", symmetric: bool = True, group_size: int | None = None
    ) -> Self:
        """Return an int8 copy of `linear`; a static copy still needs `set_input_range`."""
        bias = linear.bias is not None
        layer = cls(linear.in_features, linear.out_features, bias, mode, symmetric, linear.weight.device, group_size)
        rows = quantize_rows(linear.weight) if group_size is None else quantize_groups(linear.weight, group_size)
        layer.set_weight(*rows)
        if linear.bias is not None:
            layer.bias = linear.bias.detach().to(torch.float32, copy=True)
        return layer.train(linear.training)

    def set_weight(self, weight: Tensor, scale: Tensor) -> None:
        """Take an int8 `weight` `(out_features, in_features)` and its scales."""
        self.weight, self.scale = weight, scale
        if self.channel_sum is not None:
            self.channel_sum = weight.sum(dim=1, dtype=torch.float32)

    def set_input_range(self, scale: float, zero_point: int) -> None:
        """Set how a static layer quantizes its input. Raises ModelError in the other modes."""
        if self.input_scale is None or self.input_zero_point is None:
            raise ModelError("only a static layer has a fixed input range", found=self.mode, wanted="static")
        self.input_scale.fill_(scale)
        self.input_zero_point.fill_(zero_point)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        if x.device.type != "cpu" or (torch.is_grad_enabled() and x.requires_grad):
            y = self._float_product(rows)
        elif self.mode == "weight_only":
            y = self._weight_only_product(rows)
        else:
            y = self._quantized_product(rows)
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def dequantized_weight(self) -> Tensor:
        """Return the fp32 weight that the int8 weight and its scales stand for."""
        scale = self.scale.to(torch.float32)
        if self.group_size is not None:
            return self.weight.to(torch.float32) * spread_groups(scale, self.group_size, self.in_features)
        return self.weight.to(torch.float32) * scale.unsqueeze(1)

    def _quantized_product(self, rows: Tensor) -> Tensor:
        integers, scale, zero_point = self._quantize_input(rows.to(torch.float32))
        if self._integer_product:
            product = torch._int_mm(integers.to(torch.int8), self.weight.t())
        else:
            product = F.linear(integers, self.weight.to(torch.float32))
        if zero_point is not None and self.channel_sum is not None:
            product = product - zero_point * self.channel_sum
        return self._scale_and_shift(product * scale)  # an int32 product becomes fp32 here, in one pass

    def _quantize_input(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.input_scale is None or self.input_zero_point is None:
            return quantize_tokens(rows, self.symmetric)
        integers = quantize_fixed(rows, self.input_scale, self.input_zero_point)
        return integers, self.input_scale, None if self.symmetric else self.input_zero_point

    def _weight_only_product(self, rows: Tensor) -> Tensor:
        if self.group_size is not None:
            dtype = torch.float32 if torch.compiler.is_exporting() else self._fast_float
            y = F.linear(rows.to(dtype), self.dequantized_weight().to(dtype)).to(torch.float32)
            return y if self.bias is None else y + self.bias
        traced = torch.compiler.is_compiling()  # there one path for all row counts: torch's compiler lacks the kernel
        if not traced and self.in_features % _PACKED_MULTIPLE == 0 and rows.shape[0] <= _PACKED_ROWS:
            ones = torch.ones(self.out_features, dtype=torch.bfloat16)  # bf16 scales would cost 8 bits of precision
            y = torch.ops.aten._weight_int8pack_mm(rows.to(torch.bfloat16), self.weight, ones)
            return self._scale_and_shift(y.to(torch.float32))
        dtype = torch.float32 if torch.compiler.is_exporting() else self._fast_float
        return self._scale_and_shift(F.linear(rows.to(dtype), self.weight.to(dtype)).to(torch.float32))

    def _float_product(self, rows: Tensor) -> Tensor:
        x = rows.to(torch.float32)
        if self.mode != "weight_only":
            integers, scale, zero_point = self._quantize_input(x.detach())
            meant = (integers if zero_point is None else integers - zero_point) * scale
            x = x + (meant - x.detach())
        return F.linear(x, self.dequantized_weight(), self.bias)

    def _scale_and_shift(self, y: Tensor) -> Tensor:
        bias = self.bias  # each look-up of a buffer costs half a microsecond, 2% of a single row's time
        return y * self.scale if bias is None else torch.addcmul(bias, y, self.scale)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"mode={self.mode}, symmetric={self.symmetric}"
            + ("" if self.group_size is None else f", group_size={self.group_size}")
        )
