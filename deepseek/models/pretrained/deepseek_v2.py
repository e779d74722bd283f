"""DeepSeek V2 checkpoints (`DeepseekV2ForCausalLM`: V2, V2-Lite, V2.5) and our DeepSeekMoE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepseek.errors import ModelError
from deepseek.models.pretrained.rotary_fields import rotary_from, rotary_to
from deepseek.models.pretrained.rules import Family, Rule


def latent_config_from(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what V2 and V3 write alike, `moe` without the routing. Raises ModelError for what we do not have."""
    for setting, wanted in (
        ("hidden_act", "silu"),
        ("attention_bias", False),
        ("mlp_bias", False),
        ("moe_layer_freq", 1),
    ):
        if theirs.get(setting, wanted) != wanted:
            raise ModelError(
                f"DeepSeekMoE can't do what '{setting}' in config.json asks", found=theirs[setting], wanted=wanted
            )
    return {
        "vocab_size": theirs["vocab_size"],
        "max_length": theirs["max_position_embeddings"],
        "num_layers": theirs["num_hidden_layers"],
        "num_dense_layers": theirs["first_k_dense_replace"],
        "d_model": theirs["hidden_size"],
        "num_heads": theirs["num_attention_heads"],
        "d_ff": theirs["intermediate_size"],
        "attention": {
            "query_rank": theirs.get("q_lora_rank"),
            "kv_rank": theirs["kv_lora_rank"],
            "plain_dim": theirs["qk_nope_head_dim"],
            "rotary_dim": theirs["qk_rope_head_dim"],
            "value_dim": theirs["v_head_dim"],
            "pairs": theirs.get("rope_interleave", True),
        },
        "moe": {
            "num_experts": theirs["n_routed_experts"],
            "top_k": theirs["num_experts_per_tok"],
            "d_ff": theirs["moe_intermediate_size"],
            "num_shared": theirs.get("n_shared_experts") or 0,
            "scale": float(theirs.get("routed_scaling_factor", 1.0)),
        },
        "norm_eps": theirs.get("rms_norm_eps", 1e-6),
        "tie_embeddings": theirs.get("tie_word_embeddings", False),
        **rotary_from(theirs),
    }


def latent_config_to(config: Any) -> dict[str, Any]:
    """Return what V2 and V3 read alike. Raises ModelError for a model without shared experts."""
    attention, moe = config.attention, config.moe
    if not moe.num_shared:
        raise ModelError(
            "DeepSeek's layout has shared experts", found="num_shared 0", fix="ds.save(model, path) writes a bundle"
        )
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length,
        "num_hidden_layers": config.num_layers,
        "first_k_dense_replace": config.num_dense_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "intermediate_size": config.d_ff,
        "q_lora_rank": attention.query_rank,
        "kv_lora_rank": attention.kv_rank,
        "qk_nope_head_dim": attention.plain_dim,
        "qk_rope_head_dim": attention.rotary_dim,
        "v_head_dim": attention.value_dim,
        "n_routed_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.d_ff,
        "n_shared_experts": moe.num_shared,
        "n_group": moe.num_groups,
        "topk_group": moe.top_groups,
        "routed_scaling_factor": moe.scale,
        "norm_topk_prob": moe.normalize,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
        **rotary_to(config),
    }


def latent_rules(config: Any) -> Sequence[Rule]:
    """Return the rules of V2 and V3, which name their weights alike."""
    block, layer = "blocks.{}.", "model.layers.{}."
    attention = {
        "query": "q_proj",
        "query_down": "q_a_proj",
        "query_norm": "q_a_layernorm",
        "query_up": "q_b_proj",
        "kv_down": "kv_a_proj_with_mqa",
        "kv_norm": "kv_a_layernorm",
        "kv_up": "kv_b_proj",
        "out": "o_proj",
    }
    parts, ours, theirs = ("gate", "up", "down"), f"{block}feed_forward.", f"{layer}mlp."
    return (
        Rule("token_embedding.weight", "model.embed_tokens.weight"),
        *(Rule(f"{block}attention.{a}.", f"{layer}self_attn.{b}.") for a, b in attention.items()),
        *(Rule(f"{ours}{part}.", f"{theirs}{part}_proj.") for part in parts),
        *(Rule(f"{ours}shared.{part}.", f"{theirs}shared_experts.{part}_proj.") for part in parts),
        *(Rule(f"{ours}experts.{part}", f"{theirs}experts.{{e}}.{part}_proj.weight", "stack") for part in parts),
        Rule(f"{ours}router.weight", f"{theirs}gate.weight"),
        Rule(f"{ours}router.correction_bias", f"{theirs}gate.e_score_correction_bias"),
        Rule(f"{block}attention_norm.", f"{layer}input_layernorm."),
        Rule(f"{block}feed_forward_norm.", f"{layer}post_attention_layernorm."),
        Rule("norm.", "model.norm."),
        Rule("lm_head.weight", "lm_head.weight"),
    )


def _config_from(theirs: Mapping[str, Any]) -> dict[str, Any]:
    method, scoring = theirs.get("topk_method", "greedy"), theirs.get("scoring_func", "softmax")
    if method not in ("greedy", "group_limited_greedy") or scoring != "softmax":
        raise ModelError(
            "DeepSeek V2 has no such routing", found=f"{method}, {scoring}", wanted="greedy or group_limited_greedy"
        )
    if theirs.get("norm_topk_prob"):
        raise ModelError(
            "the published code and transformers disagree on what norm_topk_prob means in V2",
            found=True,
            wanted=False,
        )
    found = latent_config_from(theirs)
    grouped = method == "group_limited_greedy"
    groups = {"num_groups": theirs["n_group"], "top_groups": theirs["topk_group"]} if grouped else {}
    return {**found, "moe": {**found["moe"], "scoring": "softmax", **groups}}


def _config_to(config: Any) -> dict[str, Any]:
    moe = config.moe
    if moe.scoring != "softmax" or moe.correction_bias or moe.normalize or not config.attention.pairs:
        raise ModelError(
            "DeepSeek V2 scores by softmax, without correction bias or normalisation, and turns pairs",
            found=f"scoring {moe.scoring}, correction_bias {moe.correction_bias}, normalize {moe.normalize}",
            fix="ds.save(model, path) writes a bundle",
        )
    return {
        "model_type": "deepseek_v2",
        "architectures": ["DeepseekV2ForCausalLM"],
        **latent_config_to(config),
        "topk_method": "group_limited_greedy" if moe.num_groups > 1 else "greedy",
        "scoring_func": "softmax",
    }


FAMILY = Family(
    template="DeepSeekMoE",
    config_from=_config_from,
    config_to=_config_to,
    rules=latent_rules,
    ignored=(r"\.rotary_emb\.inv_freq$",),
    base_prefix="model.",
)
"""How DeepSeek V2 checkpoints map to DeepSeekMoE."""
