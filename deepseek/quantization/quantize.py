"""`quantize_model`: a float model in, a quantized copy out. The original is never changed.

Not here: which layers (`plan.py`), what ranges (`ranges.py`), the arithmetic (`deepseek.nn.int8_linear`).
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from deepseek.errors import DeepSeekError, QuantizationError
from deepseek.nn.int8_conv import Int8Conv2d
from deepseek.nn.int8_embedding import Int8Embedding
from deepseek.nn.int8_linear import Int8Linear
from deepseek.nn.int8_swap import Int8Layer, int8_specs, set_layer, tie
from deepseek.quantization.calibrate import (
    Batch,
    CalibrationData,
    calibration_batches,
    call_model,
    first_and_all,
    observe_inputs,
    output_ratios,
)
from deepseek.quantization.config import QuantConfig
from deepseek.quantization.plan import Plan, plan_layers, unused_patterns
from deepseek.quantization.ranges import find_range, scale_and_zero_point
from deepseek.quantization.report import LayerReport, QuantReport, sqnr_db, tensor_bytes


def quantize_model(
    model: nn.Module, config: QuantConfig | None = None, calibration_data: CalibrationData | None = None
) -> nn.Module:
    """Return a quantized copy of `model` in eval mode, for inference.

    `calibration_data` (static only): an iterable of batches, each a tensor, a dict of tensors or a tuple of arguments;
    without it the model's `example_inputs` serve, with a warning. Warns if no layer could be quantized.
    Raises QuantizationError if the model is quantized already, calibration is impossible, or the copy does not run.
    """
    return _quantize(model, config or QuantConfig(), calibration_data)[0]


def quantize_with_report(
    model: nn.Module, config: QuantConfig | None = None, calibration_data: CalibrationData | None = None
) -> tuple[nn.Module, QuantReport]:
    """Do what `quantize_model` does; return the copy and what happened to each layer."""
    return _quantize(model, config or QuantConfig(), calibration_data)


def _quantize(
    model: nn.Module, config: QuantConfig, calibration_data: CalibrationData | None
) -> tuple[nn.Module, QuantReport]:
    quantized_already = int8_specs(model)
    if quantized_already:
        raise QuantizationError(
            "the model is quantized already",
            found=f"int8 layer '{next(iter(quantized_already))}'",
            fix="quantize the original",
        )
    if calibration_data is not None and (config.weight_bits == 16 or config.mode != "static"):
        warnings.warn("calibration_data has no effect: only method='static' needs it", stacklevel=3)
    for name in config.without_effect():
        warnings.warn(f"the setting '{name}' has no effect with {config.describe()}", stacklevel=3)
    result = copy.deepcopy(model).eval().requires_grad_(False)
    if config.weight_bits == 16:
        result = result.to(torch.bfloat16)
        return result, QuantReport(tensor_bytes(model), tensor_bytes(result), (), {})
    plan = plan_layers(result, config)
    for pattern in unused_patterns(result, config):
        warnings.warn(f"skip pattern '{pattern}' matches no layer with weights; it has no effect", stacklevel=3)
    static = config.mode == "static"
    data = calibration_data if static else None
    first, batches = first_and_all(calibration_batches(result, data, needed=static and bool(plan.kinds)))
    if static and plan.kinds:
        plan, layers = _calibrated_layers(result, plan, config, batches)
    else:
        layers = {name: _int8_layer(result.get_submodule(name), config) for name in plan.kinds}
    ratios = {} if first is None else output_ratios(result, layers, first)
    report_layers = tuple(
        _layer_report(name, result.get_submodule(name), layer, ratios.get(name)) for name, layer in layers.items()
    )
    _install(result, layers, plan)
    if not layers:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(plan.skipped.items())[:5])
        warnings.warn(
            f"nothing was quantized ({reasons or 'the model has no layer with a weight matrix'})", stacklevel=3
        )
    elif first is not None:
        _check_runs(result, first)
    return result, QuantReport(tensor_bytes(model), tensor_bytes(result), report_layers, plan.skipped)


def _int8_layer(layer: nn.Module, config: QuantConfig) -> Int8Layer:
    if isinstance(layer, nn.Embedding):
        return Int8Embedding.from_embedding(layer)
    if isinstance(layer, nn.Conv2d):
        return Int8Conv2d.from_conv(layer, config.mode, config.symmetric)
    if isinstance(layer, nn.Linear):
        return Int8Linear.from_linear(layer, config.mode, config.symmetric)
    raise QuantizationError("no int8 form", found=type(layer).__name__, wanted="Linear, Embedding or Conv2d")


def _calibrated_layers(
    model: nn.Module, plan: Plan, config: QuantConfig, batches: CalibrationData
) -> tuple[Plan, dict[str, Int8Layer]]:
    """Return static layers, and the plan without those that calibration never reached."""
    watched = [name for name, kind in plan.kinds.items() if kind != "embedding"]
    histograms = observe_inputs(model, watched, batches)
    unreached = [name for name, histogram in histograms.items() if not histogram.seen]
    if unreached:
        warnings.warn(f"calibration never reached {', '.join(unreached)}: left in floating point", stacklevel=4)
        plan = plan_layers(model, config, dict.fromkeys(unreached, "calibration never reached it"))
    layers: dict[str, Int8Layer] = {}
    for name in plan.kinds:
        layers[name] = layer = _int8_layer(model.get_submodule(name), config)
        if not isinstance(layer, Int8Embedding):
            low, high = find_range(histograms[name], config.calibration, config.symmetric)
            layer.set_input_range(*scale_and_zero_point(low, high, config.symmetric))
    return plan, layers


def _layer_report(name: str, before: nn.Module, after: Int8Layer, output_db: float | None) -> LayerReport:
    mode = "weight_only" if isinstance(after, Int8Embedding) else after.mode
    kind = type(before).__name__.lower()
    weight_db = sqnr_db(before.get_parameter("weight"), after.dequantized_weight())
    return LayerReport(name, kind, mode, tensor_bytes(before), tensor_bytes(after), weight_db, output_db)


def _install(model: nn.Module, layers: dict[str, Int8Layer], plan: Plan) -> None:
    by_original: dict[int, Int8Layer] = {}  # one module under two names stays one module
    for name, layer in layers.items():
        set_layer(model, name, by_original.setdefault(id(model.get_submodule(name)), layer))
    for name, owner in plan.tied.items():
        tie(model.get_submodule(name), model.get_submodule(owner), name)


def _check_runs(model: nn.Module, batch: Batch) -> None:
    try:
        with torch.no_grad():
            call_model(model, batch)
    except DeepSeekError:
        raise
    except Exception as error:
        raise QuantizationError(
            "the quantized model does not run: some code reads a layer's weight itself",
            found=f"{type(error).__name__}: {error}",
            fix="name that layer in `skip`",
        ) from error
