"""`prepare_qat`: a float model in, a copy out that trains with the rounding of its int8 form.

The copy is a plain module with plain parameters: the trainer, its checkpoints, mixed precision and compiling take it as
it is. Not here: training (`train.py`) and what becomes of the copy afterwards (`convert.py`).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.errors import DeepSeekError, QuantizationError
from deepseek.nn.fake_quant.initial import StepInit, initial_steps
from deepseek.nn.fake_quant.layers import (
    FORMS,
    FakeQuantLayer,
    InputQuantizer,
    WeightQuantizer,
    can_be_packed,
    equip,
    prepared_layers,
)
from deepseek.nn.fake_quant.norms import FreezingBatchNorm
from deepseek.nn.fold_norm import norm_pairs
from deepseek.nn.int8_swap import int8_specs, set_layer
from deepseek.quantization.calibrate import (
    Batch,
    CalibrationData,
    Hook,
    calibration_batches,
    first_and_all,
    layer_input,
    model_arguments,
    observe_inputs,
    watch_layers,
)
from deepseek.quantization.config import Calibration, QuantConfig
from deepseek.quantization.plan import Plan, plan_layers, unused_patterns
from deepseek.quantization.ranges import find_range, scale_and_zero_point
from deepseek.tasks.task import eval_mode

_WEIGHT_BITS = (8, 4)
_CALIBRATION: dict[Calibration, Calibration] = {"best": "mse", "moving_average": "mse"}
"""What begins in place of a calibration that compares or follows batches: training moves the ranges anyway."""
_FREEZABLE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def prepare_qat(
    model: nn.Module,
    config: QuantConfig | None = None,
    example_inputs: Batch | None = None,
    calibration_data: CalibrationData | None = None,
    *,
    freeze_norms_after: int | None = None,
    step_init: StepInit = "mse",
) -> nn.Module:
    """Return a copy of `model` whose linear layers, convolutions and embeddings round as their int8 forms will.

    `config`: weight_bits 8 or 4, activation_bits 8 (or 16 or 32 for rounded weights alone), quant_scheme, calibration,
    embeddings, skip. Weights have a step for each output channel, in -127..127 or -7..7. `calibration_data` gives the
    activations' first ranges, as `quantize_model` takes it; without it `example_inputs` (one batch), or the model's
    own, with a warning. Batch norms that alone read a layer are marked to be folded into it at the end;
    `freeze_norms_after` that many training batches their statistics stand still. `step_init`: see `initial_steps`.

    Raises QuantizationError, naming the layer, if the model is quantized or prepared already, a weight or activation
    is not finite, or there is nothing to prepare. `model` itself is not changed.
    """
    config = config or QuantConfig()
    _check(model, config, freeze_norms_after)
    result = copy.deepcopy(model)
    data: CalibrationData | None = calibration_data
    if data is None and example_inputs is not None:
        data = [example_inputs]
    plan = _plan(result, config)
    for pattern in unused_patterns(result, config):
        warnings.warn(f"pattern '{pattern}' matches no layer with weights; it has no effect", stacklevel=2)
    watched = [name for name, kind in plan.kinds.items() if kind != "embedding" and _rounds_input(config, name)]
    first, batches = first_and_all(calibration_batches(result, data, needed=bool(watched)))
    norms = _norms(result, first) if config.fold_norms and first is not None else {}
    floats = {name: result.get_submodule(name) for name in plan.kinds}
    layers = _training_layers(floats, config, norms, step_init)
    for name, layer in layers.items():
        set_layer(result, name, layer)
    if watched and first is None:
        raise QuantizationError("the calibration data has no batches", fix="pass an iterable with at least one batch")
    if watched and first is not None:
        kept = _calibrate(result, layers, config, watched, first, batches)
        for name in floats.keys() - kept:
            set_layer(result, name, floats[name])
    _pack(list(prepared_layers(result).values()))
    if freeze_norms_after is not None:
        _let_freeze(result, [norms[name] for name in prepared_layers(result) if name in norms], freeze_norms_after)
    return result


def _check(model: nn.Module, config: QuantConfig, freeze_norms_after: int | None) -> None:
    done = next(iter(int8_specs(model)), None)
    if done is not None:
        raise QuantizationError(
            "the model is quantized already", found=f"int8 layer '{done}'", fix="prepare the float original"
        )
    done = next(iter(prepared_layers(model)), None)
    if done is not None:
        raise QuantizationError(
            "the model is prepared for quantization-aware training already",
            found=f"layer '{done}'",
            fix="train it as it is, or prepare the float original",
        )
    if config.granularity != "per_channel" and "granularity" in config.model_fields_set:
        raise QuantizationError(
            "quantization-aware training has one step for each output channel",
            found=f"granularity {config.granularity}",
            wanted="per_channel",
        )
    if freeze_norms_after is not None and freeze_norms_after < 0:
        raise QuantizationError("freeze_norms_after is negative", found=freeze_norms_after, wanted="0 batches or more")
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            raise QuantizationError(
                f"the weight '{name}' is not finite", fix="train the float model again, or load a good checkpoint"
            )


def _plan(model: nn.Module, config: QuantConfig) -> Plan:
    """Return which layers to prepare: those with an int8 form, whatever their bits, that have a training form too."""
    rules = QuantConfig(embeddings=config.embeddings, skip=config.skip)
    reasons: dict[str, str] = {}
    for name in plan_layers(model, rules).kinds:
        bits, kind = config.for_layer(name).weight_bits, type(model.get_submodule(name))
        if kind not in FORMS:
            reasons[name] = f"{kind.__name__} has no training form"
        elif bits == 16:
            reasons[name] = "weight_bits: 16"
        elif bits not in _WEIGHT_BITS:
            raise QuantizationError(
                f"layer '{name}' can't be trained with such weights", found=f"{bits} bits", wanted="8 or 4"
            )
    plan = plan_layers(model, rules, reasons)
    if not plan.kinds:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(plan.skipped.items())[:5])
        raise QuantizationError(
            "the model has nothing to train quantized", found=why or "no layer with a weight matrix"
        )
    return plan


def _calibrate(
    model: nn.Module,
    layers: Mapping[str, FakeQuantLayer],
    config: QuantConfig,
    watched: list[str],
    first: Batch,
    batches: Iterable[Batch],
) -> set[str]:
    """Give the layers their input quantizers; return the names of those that may stay, the others never ran.

    Inputs are watched with weights rounded already, as training will see them.
    """
    with eval_mode(model):
        histograms = observe_inputs(model, watched, batches)
    unreached = [name for name, histogram in histograms.items() if not histogram.seen]
    if unreached:
        warnings.warn(f"calibration never reached {', '.join(unreached)}: left in floating point", stacklevel=3)
    weights = {id(layers[name].weight) for name in unreached}
    kept = {name for name, layer in layers.items() if id(layer.weight) not in weights}
    readers = _same_inputs(model, [name for name in watched if name in kept], first)
    for name in [name for name in watched if name in kept]:
        own = config.for_layer(name)
        owner = readers[name]
        if owner != name and config.for_layer(owner).symmetric == own.symmetric:
            layers[name].input_quantizer = layers[owner].input_quantizer
            continue
        found = find_range(histograms[name], _CALIBRATION.get(own.calibration, own.calibration), own.symmetric)
        step, zero_point = scale_and_zero_point(*(found if found[0] < found[1] else (-1.0, 1.0)), own.symmetric)
        quantizer = InputQuantizer(step, None if own.symmetric else zero_point)
        layers[name].input_quantizer = quantizer.to(layers[name].weight.device)
    return kept


def _same_inputs(model: nn.Module, names: list[str], batch: Batch) -> dict[str, str]:
    """Return for each layer the first one that always reads the very tensors that it reads: queries, keys and values.

    They get one quantizer, so that a runtime rounds such a tensor once.
    """
    read: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    alive: list[Tensor] = []  # so that no id is used twice

    def watch(name: str) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            x = layer_input(args, kwargs)
            alive.append(x)
            read[name].append((id(x), x._version))

        return hook

    with eval_mode(model):
        watch_layers(model, {name: watch(name) for name in names}, [batch])
    owners: dict[tuple[tuple[int, int], ...], str] = {}
    return {name: owners.setdefault(tuple(tensors), name) if tensors else name for name, tensors in read.items()}


def _norms(model: nn.Module, batch: Batch) -> dict[str, str]:
    """Return the batch norm that follows each layer and can be folded into it."""
    args, kwargs = model_arguments(model, batch)
    try:
        return {layer: norm for norm, layer in norm_pairs(model, kwargs or args).items()}
    except DeepSeekError:
        raise
    except Exception:
        with eval_mode(model):
            observe_inputs(model, [], [batch])  # says where the batch does not fit
        raise


def _rounds_input(config: QuantConfig, name: str) -> bool:
    return config.for_layer(name).activation_bits in (None, 8)


def _training_layers(
    floats: Mapping[str, nn.Module], config: QuantConfig, norms: Mapping[str, str], step_init: StepInit
) -> dict[str, FakeQuantLayer]:
    """Return the training form of each layer, without input quantizers; shared weights share their steps too."""
    steps: dict[int, WeightQuantizer] = {}
    made: dict[int, FakeQuantLayer] = {}
    for name, layer in floats.items():
        weight = layer.get_parameter("weight")
        if id(weight) not in steps:
            bits = config.for_layer(name).weight_bits
            steps[id(weight)] = WeightQuantizer(initial_steps(weight, bits, step_init), bits)
        if id(layer) not in made:
            made[id(layer)] = equip(layer, steps[id(weight)], None, norms.get(name))
    return {name: made[id(layer)] for name, layer in floats.items()}


def _pack(layers: list[FakeQuantLayer]) -> None:
    """Mark the 4-bit weights all of whose layers can hold them packed."""
    loose = {id(layer.weight_quantizer) for layer in layers if not can_be_packed(layer)}
    for layer in layers:
        layer.weight_quantizer.packed = id(layer.weight_quantizer) not in loose


def _let_freeze(model: nn.Module, names: list[str], after: int) -> None:
    for name in names:
        norm = model.get_submodule(name)
        if isinstance(norm, _FREEZABLE):
            set_layer(model, name, FreezingBatchNorm.of(norm, after))
