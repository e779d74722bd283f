"""A linear layer with a 4-bit weight, two values to a byte: the arithmetic, not the choice of levels.

The input stays in floating point. On a CPU, torch's 4-bit kernel multiplies without unpacking; under a gradient, on
other devices and in an exported graph the weight is dequantized first. Not here: rounding (`int4_weights`,
`deepseek.quantization.gptq`, `awq`).
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from deepseek.nn.int4_kernel import Int4Kernel, product
from deepseek.nn.int4_weights import choose_scales, dequantize_levels, group_count, round_to_levels
from deepseek.nn.int8_linear import register_optional
from deepseek.nn.packed_bits import pack, packed_size, unpack


class Int4Linear(nn.Module):
    """`nn.Linear` with a 4-bit weight. Input `(..., in_features)` fp32, bf16 or fp16; output of the same dtype.

    State dict: `weight` uint8 `(out_features, ceil(in_features / 2))`, the first of two inputs in the low half;
    `scale` fp32 `(out_features, groups)`, `zero_point` uint8 of that shape if asymmetric, `bias` fp32 if there is one,
    `input_multiplier` fp32 `(in_features,)` if `multiplied`: the input is multiplied by it before the weight, which was
    divided by it (arXiv:2306.00978). Gradients reach the input, never the weight.
    """

    weight: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bias: Tensor | None
    input_multiplier: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        group_size: int | None = None,
        symmetric: bool = True,
        multiplied: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        """Make an empty layer; `group_size` None is one scale for each output channel."""
        super().__init__()
        shape = (out_features, group_count(in_features, group_size))
        self.in_features, self.out_features = in_features, out_features
        self.group_size, self.symmetric = group_size, symmetric
        self._kernel = Int4Kernel()
        width = packed_size(in_features, 4)
        self.register_buffer("weight", torch.zeros(out_features, width, dtype=torch.uint8, device=device))
        self.register_buffer("scale", torch.ones(shape, device=device))
        register_optional(
            self, "zero_point", None if symmetric else torch.zeros(shape, dtype=torch.uint8, device=device)
        )
        register_optional(self, "bias", torch.zeros(out_features, device=device) if bias else None)
        register_optional(self, "input_multiplier", torch.ones(in_features, device=device) if multiplied else None)

    @classmethod
    def empty_like(
        cls, linear: nn.Linear, group_size: int | None = None, symmetric: bool = True, multiplied: bool = False
    ) -> Self:
        """Return a layer of the sizes of `linear`, without its weights."""
        bias, device = linear.bias is not None, linear.weight.device
        layer = cls(linear.in_features, linear.out_features, bias, group_size, symmetric, multiplied, device)
        return layer.train(linear.training)

    @classmethod
    def from_linear(cls, linear: nn.Linear, group_size: int | None = None, symmetric: bool = True) -> Self:
        """Return a 4-bit copy of `linear`, each weight rounded to the nearest level."""
        scale, zero_point = choose_scales(linear.weight, group_size, symmetric)
        levels = round_to_levels(linear.weight, scale, zero_point, group_size)
        return cls.from_levels(linear, group_size, levels, scale, zero_point)

    @classmethod
    def from_levels(
        cls,
        linear: nn.Linear,
        group_size: int | None,
        levels: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        input_multiplier: Tensor | None = None,
    ) -> Self:
        """Return a copy of `linear` whose weight is `levels` uint8 `(out_features, in_features)`, each 0..15."""
        layer = cls.empty_like(linear, group_size, zero_point is None, input_multiplier is not None)
        layer.weight, layer.scale, layer.zero_point = pack(levels, 4), scale, zero_point
        layer.input_multiplier = input_multiplier
        if linear.bias is not None:
            layer.bias = linear.bias.detach().to(torch.float32, copy=True)
        return layer

    @property
    def multiplied(self) -> bool:
        """Whether the input is multiplied by a vector first."""
        return self.input_multiplier is not None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).to(torch.float32)
        if self.input_multiplier is not None:
            rows = rows * self.input_multiplier
        return product(self, self._kernel, rows).to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def levels(self) -> Tensor:
        """Return the levels 0..15 as uint8 `(out_features, in_features)`."""
        return unpack(self.weight, 4, self.in_features)

    def dequantized_weight(self) -> Tensor:
        """Return the fp32 weight `(out_features, in_features)` that acts on the layer's input."""
        weight = self.stored_weight()
        return weight if self.input_multiplier is None else weight * self.input_multiplier

    def stored_weight(self) -> Tensor:
        """Return the fp32 weight that acts on the multiplied input."""
        return dequantize_levels(self.levels(), self.scale.to(torch.float32), self.zero_point, self.group_size)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"group_size={self.group_size}, symmetric={self.symmetric}, multiplied={self.multiplied}"
        )
