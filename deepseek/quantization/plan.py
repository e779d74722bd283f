"""Which layers of a model become int8, which stay, and why. Not here: changing any (`quantize.py`)."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Mapping
from typing import Literal, NamedTuple

from torch import nn

from deepseek.quantization.config import QuantConfig

Kind = Literal["linear", "embedding", "conv2d"]

_KINDS: dict[type[nn.Module], Kind] = {nn.Linear: "linear", nn.Embedding: "embedding", nn.Conv2d: "conv2d"}


class Plan(NamedTuple):
    """`kinds`: what becomes int8, by module name. `skipped`: the reason for each layer that stays as it is."""

    kinds: dict[str, Kind]
    skipped: dict[str, str]
    tied: dict[str, str]
    """Layer -> the layer before it in `kinds` whose weight it shares."""


def plan_layers(model: nn.Module, config: QuantConfig, excluded: Mapping[str, str] | None = None) -> Plan:
    """Sort the layers of `model` that hold weights. `excluded` gives a reason for each further layer that stays."""
    kinds: dict[str, Kind] = {}
    skipped: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not _has_matrix(module):
            continue
        pattern = next((pattern for pattern in config.skip if fnmatch.fnmatchcase(name, pattern)), None)
        reason = (excluded or {}).get(name) or (f"skip: '{pattern}'" if pattern else _obstacle(module, config))
        if reason is None:
            kinds[name] = _KINDS[type(module)]
        else:
            skipped[name] = reason
    return _share(model, kinds, skipped)


def unused_patterns(model: nn.Module, config: QuantConfig) -> list[str]:
    """Return the skip patterns that match no layer with weights."""
    names = [name for name, module in model.named_modules(remove_duplicate=False) if _has_matrix(module)]
    return [pattern for pattern in config.skip if not fnmatch.filter(names, pattern)]


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter is not None and parameter.dim() >= 2 for parameter in module._parameters.values())


def _obstacle(module: nn.Module, config: QuantConfig) -> str | None:
    if type(module) not in _KINDS:
        base = next((kind.__name__ for kind in _KINDS if isinstance(module, kind)), None)
        if base is not None:
            return f"{type(module).__name__}, a subclass of {base}, may compute something else"
        return f"{type(module).__name__} has no int8 form"
    if isinstance(module, nn.Embedding) and not config.embeddings:
        return "embeddings: false"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "max_norm rescales the table at run time"
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return f"padding_mode '{module.padding_mode}' has no int8 form"
    return None


def _share(model: nn.Module, kinds: dict[str, Kind], skipped: dict[str, str]) -> Plan:
    """Find weights with several owners: int8 together, or float together where one owner has to stay."""
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)].append(name)
    tied: dict[str, str] = {}
    for name in list(kinds):
        sharing = owners[id(model.get_submodule(name).weight)]
        floating = [other for other in sharing if other not in kinds]
        if floating:
            skipped[name] = f"shares its weight with '{floating[0]}' ({skipped.get(floating[0], 'no int8 form')})"
        elif sharing[0] != name:
            tied[name] = sharing[0]
    return Plan({name: kind for name, kind in kinds.items() if name not in skipped}, skipped, tied)
