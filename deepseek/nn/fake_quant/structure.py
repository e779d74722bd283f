"""A model in training with rounding, as plain values, so that its bundle can be read: the "fake_quantized" structure.

Written by a trainer that saves what it trains; `convert_qat` takes the loaded model too. Not here: int8 models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from deepseek.errors import ModelError
from deepseek.nn.fake_quant.layers import FORMS, InputQuantizer, WeightQuantizer, equip, prepared_layers
from deepseek.nn.fake_quant.norms import FreezingBatchNorm
from deepseek.nn.int8_swap import get_layer, set_layer


def describe(model: nn.Module) -> dict[str, Any]:
    """Return the prepared layers (`layers`) and the norms that freeze (`norms`: name -> batches); empty without."""
    layers = {
        name: {
            "weight_bits": layer.weight_quantizer.bits,
            "packed": layer.weight_quantizer.packed,
            "input": "float"
            if layer.input_quantizer is None
            else ("symmetric" if layer.input_quantizer.symmetric else "asymmetric"),
            "norm": layer.norm,
        }
        for name, layer in prepared_layers(model).items()
    }
    named = model.named_modules(remove_duplicate=False)
    norms = {name: part.freeze_after for name, part in named if isinstance(part, FreezingBatchNorm)}
    return {"layers": layers, "norms": norms} if layers else {}


def apply(model: nn.Module, spec: Mapping[str, Any]) -> None:
    """Put the layers and norms of `spec` into a freshly built model, in place, without values.

    Raises ModelError for a name the model lacks, another kind of layer, or a spec that says something unknown.
    """
    made: dict[int, nn.Module] = {}
    for name, settings in spec.get("layers", {}).items():
        old = get_layer(model, name)
        if id(old) not in made:
            made[id(old)] = _empty(name, old, settings)
        set_layer(model, name, made[id(old)])
    for name, batches in spec.get("norms", {}).items():
        norm = get_layer(model, name)
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) or not isinstance(batches, int):
            raise ModelError(f"'{name}' can't be a norm that freezes", found=type(norm).__name__, wanted="a batch norm")
        set_layer(model, name, FreezingBatchNorm.of(norm, batches))


def _empty(name: str, old: nn.Module, settings: Mapping[str, Any]) -> nn.Module:
    bits, rounds, norm = settings.get("weight_bits"), settings.get("input"), settings.get("norm")
    known = bits in (8, 4) and rounds in ("float", "symmetric", "asymmetric") and isinstance(norm, str | None)
    if type(old) not in FORMS or not known:
        raise ModelError(
            f"layer '{name}' can't be prepared for quantization-aware training",
            found=f"{type(old).__name__} with {dict(settings)}",
            wanted="a linear layer, convolution or embedding, weight_bits 8 or 4, input float, symmetric or asymmetric",
        )
    weight = old.get_parameter("weight")
    packed = bool(settings.get("packed", False))
    steps = WeightQuantizer(torch.ones(weight.shape[0], device=weight.device), int(bits or 8), packed)
    inputs = None if rounds == "float" else InputQuantizer(1.0, None if rounds == "symmetric" else 0).to(weight.device)
    return equip(old, steps, inputs, norm)
