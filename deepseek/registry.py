"""The name tables: what a name in YAML or on the command line stands for.

Plain dictionaries `name -> "module:Class"`; nothing scans, decorates or imports until a name is used.
"""

from __future__ import annotations

from collections.abc import Mapping

from deepseek.errors import ConfigError, did_you_mean
from deepseek.lazy import load

MODELS: Mapping[str, str] = {
    "GPT": "deepseek.models.gpt:GPT",
}
"""Model templates: the value of `model.name` in YAML."""

MODEL_CONFIGS: Mapping[str, str] = {
    "GPT": "deepseek.models.gpt:GPTConfig",
}
"""The config class of each template, with the same keys as MODELS."""

TASKS: Mapping[str, str] = {
    "language_modeling": "deepseek.tasks.language_modeling:LanguageModeling",
}
"""What a model is for: the value of `task.name` in YAML."""


def resolve(table: Mapping[str, str], name: str, kind: str) -> object:
    """Return the object that `name` stands for in `table`; `kind` ("model", "task") is for the error message.

    Raises ConfigError with the nearest known names.
    """
    if name not in table:
        raise ConfigError(f"unknown {kind}", found=repr(name), fix=did_you_mean(name, table))
    return load(table[name])
