"""Pruned sizes: what a model has lost of its layers, channels and heads, as plain values that build it again.

A pruned model is its template with layers taken out of its lists, tensors of smaller shapes, and numbers such as
`num_heads` changed. The record of it is kept on the model, so that it survives what comes after: folded norms and
quantized layers stand in the place of the pruned ones. Not here: what to prune (`deepseek.compress.pruning`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.errors import ModelError, did_you_mean

_RECORD = "_pruned_sizes"
_SECTIONS = ("layers", "shapes", "attributes")
_BATCH_NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
_CONVS = nn.Conv1d | nn.Conv2d | nn.Conv3d
_TRANSPOSED = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def describe(model: nn.Module) -> dict[str, Any]:
    """Return what was pruned, as plain values; empty for a whole model.

    `layers`: list of modules -> which of the template's are kept. `shapes`: tensor -> its shape, `attributes`: module
    -> numbers it computes with; both by the names after the layers went.
    """
    record: dict[str, Any] = getattr(model, _RECORD, {})
    return {section: copy.deepcopy(record[section]) for section in _SECTIONS if record.get(section)}


def apply(model: nn.Module, spec: Mapping[str, Any]) -> None:
    """Bring a freshly built template to the pruned sizes, in place; its tensors are new and not filled.

    Raises ModelError for names the model lacks and for sizes that are not smaller.
    """
    unknown = sorted(set(spec) - set(_SECTIONS))
    if unknown or not all(isinstance(section, Mapping) for section in spec.values()):
        raise ModelError("the pruned sizes are wrong", found=f"keys {sorted(spec)}", wanted=f"{list(_SECTIONS)}")
    for name, kept in spec.get("layers", {}).items():
        keep_layers(model, name, kept)
    for name, shape in spec.get("shapes", {}).items():
        _shrink(model, name, shape)
    for name, values in spec.get("attributes", {}).items():
        set_numbers(model, name, values)


def keep_layers(model: nn.Module, name: str, kept: Sequence[int]) -> None:
    """Keep these members of the list of modules `name`, in place, and record it. Raises ModelError for a wrong list."""
    layers = find_module(model, name)
    wrong = not isinstance(layers, nn.ModuleList | nn.Sequential) or not isinstance(kept, Sequence) or not kept
    if wrong or list(kept) != sorted({i for i in kept if type(i) is int and 0 <= i < len(list(layers.children()))}):
        raise ModelError(f"the layers to keep of '{name}' are wrong", found=kept, wanted="rising numbers of its layers")
    for index in reversed(range(len(layers))):  # type: ignore[arg-type]
        if index not in kept:
            del layers[index]  # type: ignore[operator]
    record = _record(model)
    places = {old: new for new, old in enumerate(kept)}
    before = record["layers"].get(name)
    for section in _SECTIONS:
        record[section] = _renamed(record[section], f"{name}.", places)
    record["layers"][name] = [before[index] for index in kept] if before else list(kept)


def set_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    """Put a smaller tensor in a parameter's or buffer's place, bring its layer's numbers in line, and record it."""
    owner, leaf = find_module(model, name.rpartition(".")[0]), name.rpartition(".")[2]
    old = getattr(owner, leaf)
    setattr(owner, leaf, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)
    _renumber(owner)
    _record(model)["shapes"][name] = list(value.shape)


def set_numbers(model: nn.Module, name: str, values: Mapping[str, int]) -> None:
    """Set numbers such as `num_heads` of the module `name` to smaller ones, and record it. Raises ModelError."""
    module = find_module(model, name)
    for key, value in values.items():
        old = getattr(module, key, None)
        if type(old) is not int or type(value) is not int or not 0 < value <= old:
            raise ModelError(f"{name}.{key} can't be set", found=repr(value), wanted=f"a number from 1 to {old}")
        setattr(module, key, value)
        _record(model)["attributes"].setdefault(name, {})[key] = value


def find_module(model: nn.Module, name: str) -> nn.Module:
    """Return the module at a dotted name. Raises ModelError with near names."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        known = [known for known, _ in model.named_modules() if known]
        raise ModelError(f"the model has no module '{name}'", fix=did_you_mean(name, known)) from None


def _record(model: nn.Module) -> dict[str, dict[str, Any]]:
    record: dict[str, dict[str, Any]] | None = getattr(model, _RECORD, None)
    if record is None:
        record = {section: {} for section in _SECTIONS}
        setattr(model, _RECORD, record)
    return record


def _renamed(section: dict[str, Any], prefix: str, places: Mapping[int, int]) -> dict[str, Any]:
    """Return a section by the names that hold after layers below `prefix` went."""
    renamed = {}
    for name, value in section.items():
        index, dot, rest = name.removeprefix(prefix).partition(".")
        if not name.startswith(prefix):
            renamed[name] = value
        elif int(index) in places:
            renamed[f"{prefix}{places[int(index)]}{dot}{rest}"] = value
    return renamed


def _shrink(model: nn.Module, name: str, shape: Sequence[int]) -> None:
    owner = find_module(model, name.rpartition(".")[0])
    old = getattr(owner, name.rpartition(".")[2], None)
    if not isinstance(old, Tensor):
        raise ModelError(f"the model has no tensor '{name}'")
    fits = isinstance(shape, Sequence) and len(shape) == old.ndim and all(type(size) is int for size in shape)
    if not fits or not all(0 < new <= size for new, size in zip(shape, old.shape, strict=True)):
        raise ModelError(f"'{name}' can't be pruned to this shape", found=shape, wanted=f"at most {list(old.shape)}")
    set_tensor(model, name, torch.empty(list(shape), dtype=old.dtype, device=old.device))


def _renumber(layer: nn.Module) -> None:
    """Set the sizes that a layer keeps beside its weight to those the weight has."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, _TRANSPOSED):
        layer.in_channels, layer.out_channels = weight.shape[0], weight.shape[1] * layer.groups
    elif isinstance(layer, _CONVS) and 1 < layer.groups == layer.in_channels == layer.out_channels:
        layer.groups = layer.in_channels = layer.out_channels = weight.shape[0]
    elif isinstance(layer, _CONVS):
        layer.out_channels, layer.in_channels = weight.shape[0], weight.shape[1] * layer.groups
    elif isinstance(layer, _BATCH_NORMS):
        layer.num_features = weight.shape[0]
    elif isinstance(layer, nn.GroupNorm):
        alone = layer.num_groups == layer.num_channels
        layer.num_channels = weight.shape[0]
        layer.num_groups = layer.num_channels if alone else layer.num_groups
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = weight.shape
