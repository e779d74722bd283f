"""Llama checkpoints (`LlamaForCausalLM`: Llama 1 to 3, and models of that layout) and our Llama."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepseek.errors import ModelError
from deepseek.models.pretrained.rotary_fields import rotary_from, rotary_to
from deepseek.models.pretrained.rules import Family, Rule


def decoder_config_from(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Llama and Qwen2 write alike. Raises ModelError for an activation other than SiLU."""
    if theirs.get("hidden_act", "silu") != "silu":
        raise ModelError("Llama has no such activation", found=repr(theirs["hidden_act"]), wanted="silu")
    return {
        "vocab_size": theirs["vocab_size"],
        "max_length": theirs["max_position_embeddings"],
        "num_layers": theirs["num_hidden_layers"],
        "d_model": theirs["hidden_size"],
        "num_heads": theirs["num_attention_heads"],
        "num_kv_heads": theirs.get("num_key_value_heads"),
        "d_ff": theirs["intermediate_size"],
        "norm_eps": theirs.get("rms_norm_eps", 1e-6),
        "tie_embeddings": theirs.get("tie_word_embeddings", False),
        **rotary_from(theirs),
    }


def decoder_config_to(config: Any) -> dict[str, Any]:
    """Return what Llama and Qwen2 read alike."""
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.feed_forward_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
        **rotary_to(config),
    }


def decoder_rules(config: Any) -> Sequence[Rule]:
    """Return the rules of Llama and Qwen2, which name their weights alike."""
    block, layer = "blocks.{}.", "model.layers.{}."
    projections = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
    return (
        Rule("token_embedding.weight", "model.embed_tokens.weight"),
        *(Rule(f"{block}attention.{ours}.", f"{layer}self_attn.{theirs}.") for ours, theirs in projections.items()),
        *(Rule(f"{block}feed_forward.{part}.", f"{layer}mlp.{part}_proj.") for part in ("gate", "up", "down")),
        Rule(f"{block}attention_norm.", f"{layer}input_layernorm."),
        Rule(f"{block}feed_forward_norm.", f"{layer}post_attention_layernorm."),
        Rule("norm.", "model.norm."),
        Rule("lm_head.weight", "lm_head.weight"),
    )


def _config_from(theirs: Mapping[str, Any]) -> dict[str, Any]:
    bias = theirs.get("attention_bias", False)
    return {
        **decoder_config_from(theirs),
        "head_dim": theirs.get("head_dim"),
        "qkv_bias": bias,
        "out_bias": bias,
        "feed_forward_bias": theirs.get("mlp_bias", False),
    }


def _config_to(config: Any) -> dict[str, Any]:
    if config.qkv_bias != config.out_bias:
        raise ModelError(
            "Llama's layout has biases in all of the attention or in none",
            found=f"qkv_bias {config.qkv_bias}, out_bias {config.out_bias}",
            fix="ds.save(model, path) writes a bundle",
        )
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **decoder_config_to(config),
        "head_dim": config.head_width,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.feed_forward_bias,
    }


FAMILY = Family(
    template="Llama",
    config_from=_config_from,
    config_to=_config_to,
    rules=decoder_rules,
    ignored=(r"\.rotary_emb\.inv_freq$",),
    base_prefix="model.",
)
"""How Llama checkpoints map to Llama."""
