"""The quantized form of each planned layer, with its ranges and roundings. Not here: putting them into the model.

What the roundings need of the data is collected for a few layers at a time, so that memory stays bounded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.errors import QuantizationError
from deepseek.nn.int8_conv import INT8_CONVS, Int8Conv
from deepseek.nn.int8_embedding import Int8Embedding
from deepseek.nn.int8_linear import Int8Linear, quantize_tensor
from deepseek.quantization.adaround import InputProducts, has_rows, round_weights, weight_rows
from deepseek.quantization.best_range import set_best_ranges
from deepseek.quantization.calibrate import Batch, input_rows, observe_inputs, watch_layers
from deepseek.quantization.config import QuantConfig
from deepseek.quantization.low_bit import low_bit_layer
from deepseek.quantization.plan import Plan
from deepseek.quantization.ranges import find_range, scale_and_zero_point

_BYTES_AT_A_TIME = 256 << 20
_ROWS = 2048  # of a linear layer's inputs, for gptq and awq

Layers = dict[str, nn.Module]


def quantized_layers(
    model: nn.Module, plan: Plan, sample: Sequence[Batch], batches: Iterable[Batch]
) -> tuple[Layers, Plan, dict[str, str]]:
    """Return the quantized layers by name, the plan of those, and how each static range was found.

    `batches` (all) are gone through once, for static ranges; `sample` (the first of them) for anything else.
    """
    histograms = {}
    static = [name for name, kind in plan.kinds.items() if kind != "embedding" and plan.configs[name].mode == "static"]
    if static:
        histograms = observe_inputs(model, static, batches)
        unreached = [name for name, histogram in histograms.items() if not histogram.seen]
        if unreached:
            warnings.warn(f"calibration never reached {', '.join(unreached)}: left in floating point", stacklevel=5)
            plan = plan.without(unreached, "calibration never reached it")
    layers = {name: layer for chunk in _chunks(model, plan) for name, layer in _built(model, plan, chunk, sample)}
    calibrated: dict[str, str] = {}
    trials: dict[str, Int8Linear | Int8Conv] = {}
    for name, layer in layers.items():
        config = plan.configs[name]
        if name not in histograms or not isinstance(layer, Int8Linear | Int8Conv):
            continue
        calibrated[name] = config.calibration
        if config.calibration == "best":
            trials[name] = layer
            continue
        low, high = find_range(histograms[name], config.calibration, config.symmetric)
        layer.set_input_range(*scale_and_zero_point(low, high, config.symmetric))
    if trials:
        calibrated |= set_best_ranges(model, trials, histograms, sample)
    return layers, plan, calibrated


def _chunks(model: nn.Module, plan: Plan) -> Iterator[list[str]]:
    """Yield names of layers whose data for rounding fit into memory together."""
    chunk: list[str] = []
    size = 0
    for name in plan.kinds:
        module, config = model.get_submodule(name), plan.configs[name]
        width = module.get_parameter("weight").numel() // module.get_parameter("weight").shape[0]
        cost = {"adaround": 4 * width * width, "gptq": 8 * _ROWS * width, "awq": 8 * _ROWS * width}
        new = cost.get(config.algorithm, 0)
        if chunk and size + new > _BYTES_AT_A_TIME:
            yield chunk
            chunk, size = [], 0
        chunk.append(name)
        size += new
    if chunk:
        yield chunk


def _built(
    model: nn.Module, plan: Plan, names: Sequence[str], sample: Sequence[Batch]
) -> Iterator[tuple[str, nn.Module]]:
    modules = {name: model.get_submodule(name) for name in names}
    ways = {name: plan.configs[name].algorithm for name in names}
    by_rows = [name for name, way in ways.items() if way in ("gptq", "awq") and isinstance(modules[name], nn.Linear)]
    by_products = [name for name, way in ways.items() if way == "adaround" and has_rows(modules[name])]
    rows = input_rows(model, by_rows, sample, _ROWS) if by_rows else {}
    sums = {name: InputProducts(modules[name]) for name in by_products}
    if sums:
        watch_layers(model, {name: total.hook for name, total in sums.items()}, sample)
    for name, module in modules.items():
        config = plan.configs[name]
        if config.algorithm in ("gptq", "awq") and (name not in rows):
            config = config.replace(algorithm="rtn")  # nothing known of its inputs, or none of the layers it is for
        if config.weight_bits < 8:
            yield name, low_bit_layer(module, name, config, rows.get(name))
            continue
        layer = int8_layer(module, config, name)
        total = sums.get(name)
        if total is not None and (products := total.mean()) is not None:
            _round_well(layer, module, products, name)
        yield name, layer


def int8_layer(layer: Any, config: QuantConfig, name: str) -> Int8Linear | Int8Conv | Int8Embedding:
    """Return the int8 form of a layer, weights rounded to the nearest; static ranges are still to be set.

    Raises QuantizationError for weights that are not finite or a layer without such a form.
    """
    if not bool(layer.weight.isfinite().all()):
        raise QuantizationError(
            f"the weight of layer '{name}' is not finite",
            found=f"{int((~layer.weight.isfinite()).sum())} of {layer.weight.numel()} values",
            wanted="finite numbers",
            fix="check the model in floating point first",
        )
    per_tensor = config.granularity == "per_tensor"
    if isinstance(layer, nn.Embedding):
        return Int8Embedding.from_embedding(layer)
    if isinstance(layer, nn.Linear):
        group_size = config.group_size if config.granularity == "per_group" else None
        linear = Int8Linear.from_linear(layer, config.mode, config.symmetric, group_size)
        if per_tensor:
            linear.set_weight(*quantize_tensor(layer.weight))
        return linear
    if type(layer) not in INT8_CONVS:
        wanted = "Linear, Embedding or a convolution"
        raise QuantizationError(f"layer '{name}' has no int8 form", found=type(layer).__name__, wanted=wanted)
    conv = INT8_CONVS[type(layer)].from_conv(layer, config.mode, config.symmetric)
    if per_tensor:
        weight, scale = quantize_tensor(layer.weight)
        conv.weight, conv.scale = weight, scale[:1].repeat(layer.out_channels)
    return conv


def _round_well(layer: nn.Module, module: nn.Module, products: Tensor, name: str) -> None:
    if not bool(products.isfinite().all()):
        raise QuantizationError(
            f"the input of layer '{name}' is not finite during calibration",
            found="NaN or infinity",
            wanted="finite numbers",
            fix="check the calibration data and the model in floating point first",
        )
    if isinstance(layer, Int8Linear | Int8Conv) and layer.scale.dim() == 1:
        rounded = round_weights(weight_rows(module), layer.scale.unsqueeze(1), products).to(torch.int8)
        layer.set_weight(rounded.reshape(layer.weight.shape), layer.scale)
