"""Embedding tables and 2-D convolutions with 4-bit weights, dequantized when they are used: small, not faster."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.conv_shape import ConvShape
from deepseek.nn.int4_weights import choose_scales, dequantize_levels, group_count, round_to_levels
from deepseek.nn.int8_linear import register_optional
from deepseek.nn.packed_bits import pack, packed_size, unpack


class Int4Embedding(nn.Module):
    """`nn.Embedding` with a 4-bit table. Input: integer ids `(...)`; output `(..., embedding_dim)` in `scale.dtype`.

    State dict: `weight` uint8 `(num_embeddings, ceil(embedding_dim / 2))`, `scale` fp32 `(num_embeddings, groups)`,
    `zero_point` uint8 of that shape if asymmetric: those of an `Int4Linear` that shares the table.
    """

    weight: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, table: nn.Embedding, group_size: int | None = None, symmetric: bool = True) -> None:
        """Take the sizes of `table`, not its weights (`from_embedding` takes both)."""
        super().__init__()
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.group_size, self.symmetric = group_size, symmetric
        shape, device = (self.num_embeddings, group_count(self.embedding_dim, group_size)), table.weight.device
        width = packed_size(self.embedding_dim, 4)
        self.register_buffer("weight", torch.zeros(self.num_embeddings, width, dtype=torch.uint8, device=device))
        self.register_buffer("scale", torch.ones(shape, device=device))
        register_optional(
            self, "zero_point", None if symmetric else torch.zeros(shape, dtype=torch.uint8, device=device)
        )

    @classmethod
    def from_embedding(cls, table: nn.Embedding, group_size: int | None = None, symmetric: bool = True) -> Self:
        """Return a 4-bit copy of `table`, each weight rounded to the nearest level."""
        layer = cls(table, group_size, symmetric)
        layer.scale, layer.zero_point = choose_scales(table.weight, group_size, symmetric)
        layer.weight = pack(round_to_levels(table.weight, layer.scale, layer.zero_point, group_size), 4)
        return layer.train(table.training)

    def forward(self, ids: Tensor) -> Tensor:
        rows, scale = F.embedding(ids.flatten(), self.weight), F.embedding(ids.flatten(), self.scale)
        zero_point = None if self.zero_point is None else F.embedding(ids.flatten(), self.zero_point)
        values = dequantize_levels(unpack(rows, 4, self.embedding_dim), scale, zero_point, self.group_size)
        return values.to(self.scale.dtype).reshape(*ids.shape, self.embedding_dim)

    def dequantized_weight(self) -> Tensor:
        """Return the fp32 table that the 4-bit one stands for."""
        levels = unpack(self.weight, 4, self.embedding_dim)
        return dequantize_levels(levels, self.scale.to(torch.float32), self.zero_point, self.group_size)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, group_size={self.group_size}, symmetric={self.symmetric}"


class Int4Conv2d(nn.Module):
    """`nn.Conv2d` (zero padding) with a 4-bit weight. Input `(batch, in_channels, height, width)`, output of its dtype.

    A row of weights is an output channel's, input channel by input channel. State dict: `weight` uint8
    `(out_channels, ceil(row / 2))`, `scale` fp32 `(out_channels, groups of weights)`, `zero_point` uint8 of that shape
    if asymmetric, `bias` fp32 if there is one. Gradients reach the input, never the weight.
    """

    weight: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, group_size: int | None = None, symmetric: bool = True) -> None:
        """Take the geometry of `conv`, not its weights (`from_conv` takes both)."""
        super().__init__()
        self.shape = ConvShape.of(conv)
        self.group_size, self.symmetric = group_size, symmetric
        row, channels, device = self.shape.weights_per_channel, conv.out_channels, conv.weight.device
        scales = (channels, group_count(row, group_size))
        self.register_buffer("weight", torch.zeros(channels, packed_size(row, 4), dtype=torch.uint8, device=device))
        self.register_buffer("scale", torch.ones(scales, device=device))
        zero_point = None if symmetric else torch.zeros(scales, dtype=torch.uint8, device=device)
        register_optional(self, "zero_point", zero_point)
        register_optional(self, "bias", None if conv.bias is None else torch.zeros(channels, device=device))

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, group_size: int | None = None, symmetric: bool = True) -> Self:
        """Return a 4-bit copy of `conv`, each weight rounded to the nearest level."""
        layer, rows = cls(conv, group_size, symmetric), conv.weight.flatten(1)
        layer.scale, layer.zero_point = choose_scales(rows, group_size, symmetric)
        layer.weight = pack(round_to_levels(rows, layer.scale, layer.zero_point, group_size), 4)
        if conv.bias is not None:
            layer.bias = conv.bias.detach().to(torch.float32, copy=True)
        return layer.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.shape.convolve(x.to(torch.float32), self.dequantized_weight(), self.bias).to(x.dtype)

    def dequantized_weight(self) -> Tensor:
        """Return the fp32 weight `(out_channels, in_channels / groups, rows, columns)` that the levels stand for."""
        levels = unpack(self.weight, 4, self.shape.weights_per_channel)
        rows = dequantize_levels(levels, self.scale.to(torch.float32), self.zero_point, self.group_size)
        return rows.reshape(self.shape.weight_shape)

    def extra_repr(self) -> str:
        return f"{self.shape.describe()}, group_size={self.group_size}, symmetric={self.symmetric}"
