"""`quantize_model`: a float model in, a quantized copy out. The original is never changed.

Not here: which layers (`plan.py`), one layer's integers (`layers.py`), what ranges (`ranges.py`), the arithmetic
(`deepseek.nn.int8_linear`).
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from deepseek.errors import DeepSeekError, QuantizationError
from deepseek.nn.fold_norm import fold_norms
from deepseek.nn.int8_swap import int8_specs, set_layer, tie
from deepseek.quantization.bias_correction import correct_biases
from deepseek.quantization.calibrate import (
    Batch,
    CalibrationData,
    calibration_batches,
    call_model,
    model_arguments,
    output_ratios,
    sample_and_all,
)
from deepseek.quantization.config import QuantConfig
from deepseek.quantization.layers import quantized_layers
from deepseek.quantization.plan import Plan, plan_layers, unused_patterns
from deepseek.quantization.report import LayerReport, QuantReport, sqnr_db, tensor_bytes
from deepseek.quantization.smooth import smooth_linears


def quantize_model(
    model: nn.Module, config: QuantConfig | None = None, calibration_data: CalibrationData | None = None
) -> nn.Module:
    """Return a quantized copy of `model` in eval mode, for inference; with method `qat`, a copy to train.

    `calibration_data` (for static ranges, and roundings that look at inputs): an iterable of batches, each a tensor, a
    dict of tensors or a tuple of arguments; without it the model's `example_inputs` serve, with a warning. It is gone
    through once, and not kept but for the first few batches. Warns if no layer could be quantized.
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
            found=f"quantized layer '{next(iter(quantized_already))}'",
            fix="quantize the original",
        )
    if config.method == "qat":
        return _prepared(model, config, calibration_data)
    if calibration_data is not None and not config.needs_data:
        warnings.warn(
            "calibration_data has no effect: only method='static' and data-driven rounding need it", stacklevel=3
        )
    for name in config.without_effect():
        warnings.warn(f"the setting '{name}' has no effect with {config.describe()}", stacklevel=3)
    result = _light_copy(model).eval()
    if config.weight_bits == 16:
        result = result.to(torch.bfloat16 if config.half == "bf16" else torch.float16)
        report = QuantReport(tensor_bytes(model), tensor_bytes(result), (), {})
    else:
        report = _quantize_layers(result, config, calibration_data, tensor_bytes(model))
    _own_weights(result, model)
    return result, report


def _quantize_layers(
    model: nn.Module, config: QuantConfig, calibration_data: CalibrationData | None, bytes_before: int
) -> QuantReport:
    """Quantize the layers of `model` in place."""
    plan = plan_layers(model, config)
    for pattern in unused_patterns(model, config):
        warnings.warn(f"the pattern '{pattern}' matches no layer with weights; it has no effect", stacklevel=4)
    needed = config.needs_data and bool(plan.kinds)
    data = calibration_data if config.needs_data else None
    sample, batches = _sample(calibration_batches(model, data, needed=needed), needed)
    folded = _folded(model, config, plan, sample)
    plan, smoothed = _smoothed(model, plan, sample)
    layers, plan, calibrated = quantized_layers(model, plan, sample, batches)
    corrected = {name: layer for name, layer in layers.items() if plan.configs[name].bias_correction}
    if corrected:
        correct_biases(model, corrected, sample)
    ratios = output_ratios(model, layers, sample[0]) if sample and layers else {}
    reports = tuple(
        _layer_report(model.get_submodule(name), layer, plan, name, ratios.get(name), calibrated.get(name))
        for name, layer in layers.items()
    )
    _install(model, layers, plan)
    if not layers:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(plan.skipped.items())[:5])
        warnings.warn(
            f"nothing was quantized ({reasons or 'the model has no layer with a weight matrix'})", stacklevel=4
        )
    elif sample:
        _check_runs(model, sample[0])
    return QuantReport(bytes_before, tensor_bytes(model), reports, plan.skipped, tuple(folded), tuple(smoothed))


def _sample(batches: Iterator[Batch], needed: bool) -> tuple[list[Batch], Iterator[Batch]]:
    if needed:
        return sample_and_all(batches)
    sample = list(itertools.islice(batches, 1))
    return sample, iter(sample)


def _folded(model: nn.Module, config: QuantConfig, plan: Plan, sample: Sequence[Batch]) -> list[str]:
    if not sample or not config.fold_norms or "static" not in plan.modes():
        return []
    args, kwargs = model_arguments(model, sample[0])
    try:
        return fold_norms(model, kwargs or args)
    except DeepSeekError:
        raise
    except Exception as error:
        if _runs(model, sample[0]):
            warnings.warn(f"batch norms stay as they are: {type(error).__name__}: {error}", stacklevel=5)
        return []  # where the batch does not fit, calibration says where and how


def _runs(model: nn.Module, batch: Batch) -> bool:
    try:
        with torch.no_grad():
            call_model(model, batch)
    except Exception:  # whatever a model raises: it does not run
        return False
    return True


def _smoothed(model: nn.Module, plan: Plan, sample: Sequence[Batch]) -> tuple[Plan, list[str]]:
    shared = {*plan.tied, *plan.tied.values()}
    chosen = {
        name: config
        for name, config in plan.configs.items()
        if config.algorithm == "smoothquant" and plan.kinds[name] == "linear" and name not in shared
    }
    if not chosen:
        return plan, []
    renamed = smooth_linears(model, chosen, sample)
    return plan.renamed(renamed), list(renamed.values())


def _layer_report(
    before: nn.Module, after: nn.Module, plan: Plan, name: str, output_db: float | None, calibration: str | None
) -> LayerReport:
    dequantized: Any = after.dequantized_weight
    weight_db = sqnr_db(before.get_parameter("weight"), dequantized())
    return LayerReport(
        name,
        type(before).__name__.lower(),
        getattr(after, "mode", "weight_only"),
        tensor_bytes(before),
        tensor_bytes(after),
        weight_db,
        output_db,
        plan.configs[name].weight_bits,
        calibration,
    )


def _install(model: nn.Module, layers: dict[str, nn.Module], plan: Plan) -> None:
    by_original: dict[int, nn.Module] = {}  # one module under two names stays one module
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


def _light_copy(model: nn.Module) -> nn.Module:
    """Return a copy with parameters of its own that still share the original's memory: most will be replaced."""
    memo = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def _own_weights(copied: nn.Module, original: nn.Module) -> None:
    """Give the parameters that still lie in the original's memory a memory of their own."""
    theirs = {parameter.data_ptr() for parameter in original.parameters()}
    for parameter in copied.parameters():
        if parameter.data_ptr() in theirs:
            parameter.data = parameter.data.clone()


def _prepared(
    model: nn.Module, config: QuantConfig, calibration_data: CalibrationData | None
) -> tuple[nn.Module, QuantReport]:
    from deepseek.quantization.qat import prepare_qat

    prepared = prepare_qat(model, config, calibration_data=calibration_data)
    return prepared, QuantReport(tensor_bytes(model), tensor_bytes(prepared), (), {})
