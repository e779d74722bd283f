"""What a model has that its template's config does not tell: pruned sizes, folded norms, scaled inputs.

A bundle writes `describe_structure(model)` beside the weights and calls `apply_structure` on the template it builds,
before the weights are filled in. A kind of change is a module with `describe(model) -> dict` (plain values, empty for a
model without it) and `apply(model, spec)`, in the order of the table. Not here: quantized layers (`int8_swap`).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

from deepseek.errors import ModelError, did_you_mean

_CHANGES: dict[str, str] = {
    "pruned": "deepseek.nn.pruned_layers",
    "folded": "deepseek.nn.fold_norm",
    "smoothed": "deepseek.nn.smoothed",
    "fake_quantized": "deepseek.nn.fake_quant.structure",
}
"""Kind of change -> its module."""


def describe_structure(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the changes of a model by kind, as plain values; empty for a template as its config says."""
    found = {kind: import_module(place).describe(model) for kind, place in _CHANGES.items()}
    return {kind: spec for kind, spec in found.items() if spec}


def apply_structure(model: nn.Module, structure: Mapping[str, Mapping[str, Any]]) -> None:
    """Make the changes to a freshly built template, in place. Raises ModelError for a kind that is not known."""
    for kind in structure:
        if kind not in _CHANGES:
            raise ModelError("unknown change of structure", found=repr(kind), fix=did_you_mean(kind, _CHANGES))
    for kind, place in _CHANGES.items():
        if kind in structure:
            import_module(place).apply(model, structure[kind])
