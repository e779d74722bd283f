"""Models from plain values or YAML: `{"name": "GPT", "vocab_size": ...}`, or a size of the zoo by its name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from torch import nn

from deepseek.config import Config, parse_yaml
from deepseek.errors import ConfigError, did_you_mean
from deepseek.registry import MODEL_CONFIGS, MODELS, resolve
from deepseek.yaml_source import YamlSource, read_yaml


def zoo() -> dict[str, str]:
    """Return the YAML text of every size in the zoo, by name (`gpt2-small`)."""
    folder = resources.files("deepseek.models") / "zoo"
    files = [entry for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    return {entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8") for entry in sorted(files, key=str)}


def model_config(values: Mapping[str, Any] | YamlSource | str | Path) -> tuple[str, Config]:
    """Return (template name, config) from plain values, a zoo name, or YAML (file or parsed), with or without `model:`.

    Plain values may name a zoo size and change parts of it: `{"name": "gpt2-small", "vocab_size": 8192}`.
    Raises ConfigError with the nearest known name.
    """
    source = _source(values)
    if isinstance(source.value, dict) and set(source.value) == {"model"}:
        lines = {key[1:]: line for key, line in source.lines.items() if key[:1] == ("model",)}
        source = YamlSource(source.name, source.value["model"], lines)
    content = source.value
    if not isinstance(content, dict) or not isinstance(content.get("name"), str):
        raise ConfigError(f"{source.name}: a model needs a name", wanted="name: GPT (or a size of the zoo)")
    name = str(content["name"])
    rest = {key: value for key, value in content.items() if key != "name"}
    sizes = zoo()
    if name in sizes:
        base = parse_yaml(sizes[name], f"{name}.yaml").value
        if isinstance(base, dict):
            name, rest = str(base["name"]), {**{key: value for key, value in base.items() if key != "name"}, **rest}
    elif name not in MODELS:
        raise ConfigError("unknown model", found=repr(name), fix=did_you_mean(name, [*MODELS, *sizes]))
    config_class: Any = resolve(MODEL_CONFIGS, name, "model")
    return name, config_class.from_source(YamlSource(source.name, rest, source.lines))


def build(values: Mapping[str, Any] | Config | str | Path) -> nn.Module:
    """Build a model with fresh weights from a config, plain values, a zoo name or a YAML file. Raises ConfigError."""
    if isinstance(values, Config):
        name, config = template_of(values), values
    else:
        name, config = model_config(values)
    model_class: Any = resolve(MODELS, name, "model")
    model: nn.Module = model_class(config)
    return model


def template_of(config: Config) -> str:
    """Return the template's name for a config object. Raises ConfigError for a config that is no model's."""
    target = f"{type(config).__module__}:{type(config).__qualname__}"
    for name, known in MODEL_CONFIGS.items():
        if known == target:
            return name
    raise ConfigError("not a model's config", found=type(config).__name__, wanted=f"one of {sorted(MODEL_CONFIGS)}")


def _source(values: Mapping[str, Any] | YamlSource | str | Path) -> YamlSource:
    if isinstance(values, YamlSource):
        return values
    if isinstance(values, Mapping):
        return YamlSource("model", dict(values))
    if str(values) in zoo():
        return YamlSource(str(values), {"name": str(values)})
    if isinstance(values, str) and not values.endswith((".yaml", ".yml")):
        raise ConfigError("unknown model", found=repr(values), fix=did_you_mean(values, [*MODELS, *zoo()]))
    return read_yaml(values)
