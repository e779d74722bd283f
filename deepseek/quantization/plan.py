"""Which layers of a model become integers and how, which stay, and why. Not here: changing any (`quantize.py`)."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import nn

from deepseek.nn.int8_conv import INT8_CONVS
from deepseek.quantization.config import QuantConfig
from deepseek.quantization.low_bit import low_bit_obstacle

Kind = str
"""`linear`, `embedding`, or the kind of a convolution: `conv2d`, `conv_transpose1d` ..."""

_KINDS: dict[type[nn.Module], Kind] = {
    nn.Linear: "linear",
    nn.Embedding: "embedding",
    **{layer: form.kind for layer, form in INT8_CONVS.items()},
}


class Plan(NamedTuple):
    """`kinds`: what becomes integers, by module name. `skipped`: the reason for each layer that stays as it is."""

    kinds: dict[str, Kind]
    skipped: dict[str, str]
    tied: dict[str, str]
    """Layer -> the layer before it in `kinds` whose weight it shares."""
    configs: dict[str, QuantConfig]
    """The settings of each layer in `kinds`."""

    def without(self, names: Iterable[str], reason: str) -> Plan:
        """Return the plan in which these layers, and those that share a weight with them, stay as they are."""
        named = set(names)
        owners = {self.tied.get(name, name) for name in named}
        dropped = {name for name in self.kinds if name in named or self.tied.get(name, name) in owners}
        shared = {name: f"shares its weight with '{owner}'" for name, owner in self.tied.items()}
        reasons = {name: reason if name in named else shared.get(name, reason) for name in dropped}
        return Plan(
            {name: kind for name, kind in self.kinds.items() if name not in dropped},
            {**self.skipped, **reasons},
            {name: owner for name, owner in self.tied.items() if name not in dropped},
            {name: config for name, config in self.configs.items() if name not in dropped},
        )

    def renamed(self, names: Mapping[str, str]) -> Plan:
        """Return the plan with other names for some layers, none of them tied."""
        kinds = {names.get(name, name): kind for name, kind in self.kinds.items()}
        configs = {names.get(name, name): config for name, config in self.configs.items()}
        return self._replace(kinds=kinds, configs=configs)

    def modes(self) -> set[str]:
        """Return the arithmetic that the planned layers use."""
        return {self.configs[name].mode for name, kind in self.kinds.items() if kind != "embedding"}


def plan_layers(model: nn.Module, config: QuantConfig, excluded: Mapping[str, str] | None = None) -> Plan:
    """Sort the layers of `model` that hold weights. `excluded` gives a reason for each further layer that stays."""
    kinds: dict[str, Kind] = {}
    skipped: dict[str, str] = {}
    configs: dict[str, QuantConfig] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not _has_matrix(module):
            continue
        configs[name] = _own_config(module, config.for_layer(name))
        pattern = next((pattern for pattern in config.skip if fnmatch.fnmatchcase(name, pattern)), None)
        reason = (excluded or {}).get(name) or (f"skip: '{pattern}'" if pattern else _obstacle(module, configs[name]))
        if reason is None:
            kinds[name] = _KINDS[type(module)]
        else:
            skipped[name] = reason
    return _share(model, kinds, skipped, configs)


def unused_patterns(model: nn.Module, config: QuantConfig) -> list[str]:
    """Return the patterns of `skip` and `layers` that match no layer with weights."""
    names = [name for name, module in model.named_modules(remove_duplicate=False) if _has_matrix(module)]
    return [pattern for pattern in [*config.skip, *config.layers] if not fnmatch.filter(names, pattern)]


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter is not None and parameter.dim() >= 2 for parameter in module._parameters.values())


def _own_config(module: nn.Module, config: QuantConfig) -> QuantConfig:
    """Return what suits the kind of layer: tables have no form of fewer than 4 bits, groups are for linear layers."""
    if isinstance(module, nn.Embedding) and config.weight_bits in (1, 2):
        return _plain_int8(config)
    if config.weight_bits == 8 and config.granularity == "per_group" and not isinstance(module, nn.Linear):
        return config.replace(granularity="per_channel")
    return config


def _plain_int8(config: QuantConfig) -> QuantConfig:
    return QuantConfig(weight_bits=8, method="weight_only", embeddings=config.embeddings)


def _obstacle(module: nn.Module, config: QuantConfig) -> str | None:
    if type(module) not in _KINDS:
        base = next((kind.__name__ for kind in _KINDS if isinstance(module, kind)), None)
        if base is not None:
            return f"{type(module).__name__}, a subclass of {base}, may compute something else"
        return f"{type(module).__name__} has no int8 form"
    if config.weight_bits == 16:
        return "weight_bits: 16"
    if config.weight_bits < 8:
        obstacle = low_bit_obstacle(module, config)
        if obstacle is not None:
            return f"no {config.describe()} form: {obstacle}"
    if isinstance(module, nn.Embedding) and not config.embeddings:
        return "embeddings: false"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "max_norm rescales the table at run time"
    if isinstance(module, nn.modules.conv._ConvNd) and module.padding_mode != "zeros":
        return f"padding_mode '{module.padding_mode}' has no int8 form"
    return None


def _share(model: nn.Module, kinds: dict[str, Kind], skipped: dict[str, str], configs: dict[str, QuantConfig]) -> Plan:
    """Find weights with several owners: integers together, or float together where one owner has to stay."""
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
        if len(sharing) > 1:
            configs[name] = _shared_config(configs[name], [configs[other] for other in sharing if other in configs])
    kept = {name: kind for name, kind in kinds.items() if name not in skipped}
    return Plan(kept, skipped, tied, {name: configs[name] for name in kept})


def _shared_config(config: QuantConfig, sharing: list[QuantConfig]) -> QuantConfig:
    """Return a config for one of the owners of a weight that suits them all."""
    if any(other.weight_bits != config.weight_bits or other.group_size != config.group_size for other in sharing):
        return _plain_int8(config)
    plain = {"algorithm": "rtn", **({"granularity": "per_channel"} if config.weight_bits == 8 else {})}
    return config.replace(**plain)
