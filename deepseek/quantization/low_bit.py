"""One float layer in, its form below 8 bits out: int4, ternary or binary. Not here: which layers (`plan.py`).

Fewer bits, fewer kinds of layers: linear, convolution and (int4) embedding. What a layer's weight can't take is an
error that names it; `low_bit_obstacle` answers the same question beforehand.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from deepseek.errors import ModelError, QuantizationError, did_you_mean
from deepseek.nn.binary_layers import BinaryConv2d, BinaryLinear
from deepseek.nn.conv_shape import ConvShape
from deepseek.nn.int4_layers import Int4Conv2d, Int4Embedding
from deepseek.nn.int4_linear import Int4Linear
from deepseek.nn.int4_weights import group_count
from deepseek.nn.ternary_layers import TernaryConv2d, TernaryLinear
from deepseek.quantization.awq import awq_levels
from deepseek.quantization.gptq import gptq_levels

ALGORITHMS = ("rtn", "gptq", "awq")
"""Ways to round int4 weights: to the nearest level, GPTQ, AWQ."""

BITS = {4: "int4", 2: "ternary", 1: "binary"}


class LowBitConfig(Protocol):
    """What is read of `QuantConfig`."""

    @property
    def weight_bits(self) -> int:
        """4, 2 or 1."""

    @property
    def activation_bits(self) -> int | None:
        """1 or None: inputs of a binary layer become signs; 16 or 32: they stay."""

    @property
    def quant_scheme(self) -> str:
        """`symmetric` or `asymmetric`, of int4 weights."""

    @property
    def granularity(self) -> str:
        """`per_group` or one scale for each output channel, of int4 weights."""

    @property
    def group_size(self) -> int:
        """Weights that share a scale."""

    @property
    def algorithm(self) -> str:
        """One of ALGORITHMS."""


def low_bit_layer(layer: nn.Module, name: str, config: LowBitConfig, inputs: Tensor | None = None) -> nn.Module:
    """Return the form of `layer` with `config.weight_bits` bits a weight. `layer` is not changed.

    `inputs` fp32 `(rows, in_features)`: what a linear layer sees, for gptq and awq; convolutions and embeddings are
    rounded to the nearest. Raises QuantizationError, naming the layer, for bits other than 4, 2 and 1, a layer without
    such a form, weights or inputs that are not finite, or inputs missing.
    """
    obstacle = low_bit_obstacle(layer, config)
    if obstacle is not None:
        raise QuantizationError(f"layer '{name}' has no {_form(config)} form", found=obstacle, fix="name it in `skip`")
    if config.algorithm not in ALGORITHMS:
        fix = did_you_mean(config.algorithm, ALGORITHMS)
        raise QuantizationError(
            f"layer '{name}' can't be rounded to {_form(config)} this way", found=config.algorithm, fix=fix
        )
    weight = layer.get_parameter("weight")
    if not bool(weight.isfinite().all()):
        count = int((~weight.isfinite()).sum())
        raise QuantizationError(
            f"the weight of layer '{name}' is not finite",
            found=f"{count} of {weight.numel()} values",
            fix="check the model in floating point first",
        )
    return _build(layer, name, config, inputs).train(layer.training)


def low_bit_obstacle(layer: nn.Module, config: LowBitConfig) -> str | None:
    """Return why `layer` has no form with `config.weight_bits` bits a weight, or None if it has one."""
    if config.weight_bits not in BITS:
        return f"weight_bits {config.weight_bits}; there are {', '.join(map(str, BITS))}"
    if isinstance(layer, nn.Embedding):
        if config.weight_bits != 4:
            return f"an embedding table in {_form(config)}; there is int4"
        if layer.max_norm is not None:
            return "max_norm rescales the table at run time"
    elif not isinstance(layer, nn.Linear | nn.Conv2d):
        return f"{type(layer).__name__}; there are Linear, Conv2d and Embedding"
    try:
        if isinstance(layer, nn.Conv2d):
            ConvShape.of(layer)
        if config.weight_bits == 4:
            group_count(layer.weight[:1].numel(), _group_size(config))
    except ModelError as error:
        return f"{error.found} ({error.problem}; wanted {error.wanted})"
    return None


def _build(layer: nn.Module, name: str, config: LowBitConfig, inputs: Tensor | None) -> nn.Module:
    group_size, symmetric = _group_size(config), config.quant_scheme == "symmetric"
    if isinstance(layer, nn.Embedding):
        return Int4Embedding.from_embedding(layer, group_size, symmetric)
    signed = config.activation_bits in (None, 1)
    if isinstance(layer, nn.Conv2d):
        if config.weight_bits == 4:
            return Int4Conv2d.from_conv(layer, group_size, symmetric)
        return TernaryConv2d.from_conv(layer) if config.weight_bits == 2 else BinaryConv2d.from_conv(layer, signed)
    if not isinstance(layer, nn.Linear):
        raise QuantizationError(f"layer '{name}' has no {_form(config)} form", found=type(layer).__name__)
    if config.weight_bits == 2:
        return TernaryLinear.from_linear(layer)
    if config.weight_bits == 1:
        return BinaryLinear.from_linear(layer, signed)
    if config.algorithm == "rtn":
        return Int4Linear.from_linear(layer, group_size, symmetric)
    return _informed(layer, config, _checked_inputs(layer, name, config, inputs))


def _informed(layer: nn.Linear, config: LowBitConfig, inputs: Tensor) -> nn.Module:
    group_size, symmetric = _group_size(config), config.quant_scheme == "symmetric"
    if config.algorithm == "gptq":
        return Int4Linear.from_levels(layer, group_size, *gptq_levels(layer.weight, inputs, group_size, symmetric))
    return Int4Linear.from_levels(layer, group_size, *awq_levels(layer.weight, inputs, group_size, symmetric))


def _checked_inputs(layer: nn.Linear, name: str, config: LowBitConfig, inputs: Tensor | None) -> Tensor:
    wanted = f"a tensor (rows, {layer.in_features}) of finite values"
    if inputs is None or inputs.dim() != 2 or inputs.shape[1] != layer.in_features or not len(inputs):
        raise QuantizationError(
            f"{config.algorithm} needs inputs of layer '{name}'",
            found="none" if inputs is None else f"shape {tuple(inputs.shape)}",
            wanted=wanted,
            fix="pass calibration_data that reaches the layer, or use algorithm='rtn'",
        )
    if not bool(inputs.isfinite().all()):
        raise QuantizationError(
            f"the inputs of layer '{name}' are not finite during calibration",
            found=f"{int((~inputs.isfinite()).sum())} of {inputs.numel()} values",
            wanted=wanted,
            fix="check the calibration data and the model in floating point first",
        )
    return inputs.to(layer.weight.device, torch.float32)


def _group_size(config: LowBitConfig) -> int | None:
    return config.group_size if config.granularity == "per_group" else None


def _form(config: LowBitConfig) -> str:
    return BITS.get(config.weight_bits, f"{config.weight_bits}-bit")
