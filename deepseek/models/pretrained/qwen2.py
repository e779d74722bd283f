"""Qwen2 and Qwen2.5 checkpoints (`Qwen2ForCausalLM`) and our Llama: its weights by name, with biases on q, k and v."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepseek.errors import ModelError
from deepseek.models.pretrained.llama import decoder_config_from, decoder_config_to, decoder_rules
from deepseek.models.pretrained.rules import Family


def _config_from(theirs: Mapping[str, Any]) -> dict[str, Any]:
    kinds = set(theirs.get("layer_types") or ())
    if theirs.get("use_sliding_window", False) or kinds - {"full_attention"}:
        raise ModelError(
            "Llama has no sliding window", found="use_sliding_window or layer_types in config.json", wanted="false"
        )
    return {**decoder_config_from(theirs), "qkv_bias": True}


def _config_to(config: Any) -> dict[str, Any]:
    fits = config.qkv_bias and not config.out_bias and not config.feed_forward_bias
    if not fits or config.head_width * config.num_heads != config.d_model:
        raise ModelError(
            "Qwen2's layout has biases on queries, keys and values alone, and heads that fill d_model",
            found=f"qkv_bias {config.qkv_bias}, out_bias {config.out_bias}, head_dim {config.head_width}",
            fix="ds.save(model, path) writes a bundle",
        )
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        **decoder_config_to(config),
        "use_sliding_window": False,
    }


FAMILY = Family(
    template="Llama",
    config_from=_config_from,
    config_to=_config_to,
    rules=decoder_rules,
    ignored=(r"\.rotary_emb\.inv_freq$",),
    base_prefix="model.",
)
"""How Qwen2 checkpoints map to Llama."""
