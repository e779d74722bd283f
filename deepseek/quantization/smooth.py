"""SmoothQuant: a part of the size of large activation channels moves into the weights that read them.

Channel j of the input is divided by s_j = max|x_j|^0.5 / max|w_j|^0.5 and the weights' column j multiplied by it, which
changes no output. The norm before takes the division over where linear layers alone read it; elsewhere it is a
multiplication of its own (`deepseek.nn.smoothed`). Kept only where the layer's int8 output gains by it.
Source: Xiao et al. 2022, arXiv:2211.10438.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from deepseek.nn.int8_linear import Int8Linear
from deepseek.nn.int8_swap import set_layer
from deepseek.nn.readers import watch_readers
from deepseek.nn.smoothed import Smoothed
from deepseek.quantization.calibrate import Batch, layer_input, model_arguments, watch_layers
from deepseek.quantization.config import QuantConfig
from deepseek.quantization.observers import check_finite

_STRENGTH = 0.5
_GAIN_DB = 0.5  # less than this is not worth a multiplication at run time
_NORMS = (nn.LayerNorm, nn.RMSNorm)


def smooth_linears(model: nn.Module, configs: Mapping[str, QuantConfig], batches: Sequence[Batch]) -> dict[str, str]:
    """Smooth the inputs of the named linear layers of `model`, in place; return new names: `a.b` -> `a.b.layer`.

    Norms and linear layers get new parameters: tensors shared with other models do not change.
    """
    linears = {name: module for name in configs if isinstance(module := model.get_submodule(name), nn.Linear)}
    largest = _largest_inputs(model, linears, batches)
    groups = [group for group in _groups(model, linears, batches[0]) if all(name in largest for name in group[1])]
    factors = [_factor([linears[name] for name in names], largest[names[0]]) for _, names in groups]
    by_name = {name: factor for (_, names), factor in zip(groups, factors, strict=True) for name in names}
    noise = _noises(model, linears, by_name, largest, configs, batches)
    renamed: dict[str, str] = {}
    for (norm, names), factor in zip(groups, factors, strict=True):
        plain, smoothed = (sum(noise[name][index] for name in names) for index in (0, 1))
        if smoothed * 10 ** (_GAIN_DB / 10) >= plain:
            continue
        for name in names:
            _multiply_columns(linears[name], factor)
        if norm is not None:
            _divide(norm, factor)
            continue
        for name in names:
            set_layer(model, name, Smoothed(linears[name], 1 / factor).train(linears[name].training))
            renamed[name] = f"{name}.layer"
    return renamed


def _largest_inputs(model: nn.Module, linears: Mapping[str, nn.Linear], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Return max |x_j| of each layer's input channels, for the layers that the batches reach."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def watch(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            x = layer_input(args, kwargs)
            check_finite(name, *(float(end) for end in x.aminmax()))
            largest = x.flatten(0, -2).abs().amax(dim=0).to(torch.float32)
            found[name] = torch.maximum(found[name], largest) if name in found else largest

        return watch

    watch_layers(model, {name: hook(name) for name in linears}, batches)
    return found


def _groups(
    model: nn.Module, linears: Mapping[str, nn.Linear], batch: Batch
) -> list[tuple[nn.Module | None, list[str]]]:
    """Return (norm, linear layers that alone read it), and (None, [name]) for each other layer."""
    norms = {id(module): module for module in model.modules() if type(module) in _NORMS and _has_weight(module)}
    args, kwargs = model_arguments(model, batch)
    named = {id(module): name for name, module in linears.items()}
    readers, sources = watch_readers(model, kwargs or args, dict.fromkeys(norms), set(named))
    read_by: dict[int, list[str]] = defaultdict(list)
    alone: list[tuple[nn.Module | None, list[str]]] = []
    for linear_id, name in named.items():
        found = list(sources.get(linear_id, ()))
        norm_id = found[0] if len(found) == 1 else None
        if isinstance(norm_id, int) and readers[norm_id] <= set(named):
            read_by[norm_id].append(name)
        else:
            alone.append((None, [name]))
    groups: list[tuple[nn.Module | None, list[str]]] = []
    for norm_id, names in read_by.items():
        together = {id(linears[name]) for name in names} == set(readers[norm_id])
        groups += [(norms[norm_id], names)] if together else [(None, [name]) for name in names]
    return groups + alone


def _has_weight(norm: nn.Module) -> bool:
    return getattr(norm, "weight", None) is not None


def _factor(linears: Sequence[nn.Linear], inputs: Tensor) -> Tensor:
    """Return s `(in_features,)`, fp32; one where a channel or its weights are zero."""
    weights = torch.stack([linear.weight.detach().abs().amax(dim=0) for linear in linears]).amax(dim=0).float()
    factor = inputs.pow(_STRENGTH) / weights.pow(1 - _STRENGTH).clamp_min(1e-5)
    return torch.where((inputs > 0) & (weights > 0), factor, 1.0).clamp(1e-4, 1e4)


def _noises(
    model: nn.Module,
    linears: Mapping[str, nn.Linear],
    factors: Mapping[str, Tensor],
    largest: Mapping[str, Tensor],
    configs: Mapping[str, QuantConfig],
    batches: Iterable[Batch],
) -> dict[str, list[float]]:
    """Return the squared error of each layer's int8 output, without and with its factor."""
    noise = {name: [0.0, 0.0] for name in factors}

    def hook(name: str) -> Any:
        linear, factor = linears[name], factors[name]
        scaled = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
        scaled.weight = nn.Parameter(linear.weight.detach() * factor, requires_grad=False)
        scaled.bias = linear.bias
        plain, smooth = (
            _trial(linear, configs[name], largest[name]),
            _trial(scaled, configs[name], largest[name] / factor),
        )

        def watch(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            x = layer_input(args, kwargs)
            for index, answer in enumerate((plain(x), smooth(x / factor))):
                noise[name][index] += float((output - answer).double().square().sum())

        return watch

    watch_layers(model, {name: hook(name) for name in factors}, batches)
    return noise


def _trial(linear: nn.Linear, config: QuantConfig, largest: Tensor) -> Int8Linear:
    layer = Int8Linear.from_linear(linear, config.mode, symmetric=True)
    if config.mode == "static":
        layer.set_input_range(max(float(largest.amax()), 1e-30) / 127, 0)
    return layer


def _multiply_columns(linear: nn.Linear, factor: Tensor) -> None:
    linear.weight = nn.Parameter((linear.weight.detach() * factor).to(linear.weight.dtype), requires_grad=False)


def _divide(norm: nn.Module, factor: Tensor) -> None:
    named = cast(Any, norm)
    named.weight = nn.Parameter((named.weight.detach() / factor).to(named.weight.dtype), requires_grad=False)
    if getattr(norm, "bias", None) is not None:
        named.bias = nn.Parameter((named.bias.detach() / factor).to(named.bias.dtype), requires_grad=False)
