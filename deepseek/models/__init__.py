"""Models: one template a file, sizes as YAML in `zoo/`, built by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.models.factory import build as build
    from deepseek.models.factory import model_config as model_config
    from deepseek.models.generation import SamplingConfig as SamplingConfig
    from deepseek.models.generation import stream_tokens as stream_tokens
    from deepseek.models.gpt import GPT as GPT
    from deepseek.models.gpt import GPTConfig as GPTConfig

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "GPT": "deepseek.models.gpt:GPT",
        "GPTConfig": "deepseek.models.gpt:GPTConfig",
        "SamplingConfig": "deepseek.models.generation:SamplingConfig",
        "build": "deepseek.models.factory:build",
        "model_config": "deepseek.models.factory:model_config",
        "stream_tokens": "deepseek.models.generation:stream_tokens",
    },
)
