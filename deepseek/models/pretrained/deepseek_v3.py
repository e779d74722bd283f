"""DeepSeek V3 checkpoints (`DeepseekV3ForCausalLM`: V3, R1) and our DeepSeekMoE.

The files of the hub are in 8 bits and have to be unpacked to bfloat16 first. Their last layer, which predicts a second
token, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepseek.errors import ModelError
from deepseek.models.pretrained.deepseek_v2 import latent_config_from, latent_config_to, latent_rules
from deepseek.models.pretrained.rules import Family


def _config_from(theirs: Mapping[str, Any]) -> dict[str, Any]:
    method, scoring = theirs.get("topk_method", "noaux_tc"), theirs.get("scoring_func", "sigmoid")
    if method != "noaux_tc" or scoring != "sigmoid":
        raise ModelError("DeepSeek V3 has no such routing", found=f"{method}, {scoring}", wanted="noaux_tc, sigmoid")
    found = latent_config_from(theirs)
    routing = {
        "scoring": "sigmoid",
        "correction_bias": True,
        "normalize": theirs.get("norm_topk_prob", True),
        "num_groups": theirs.get("n_group") or 1,
        "top_groups": theirs.get("topk_group") or 1,
    }
    return {**found, "moe": {**found["moe"], **routing}}


def _config_to(config: Any) -> dict[str, Any]:
    moe = config.moe
    if moe.scoring != "sigmoid" or not moe.correction_bias:
        raise ModelError(
            "DeepSeek V3 scores by sigmoid and corrects the choice by a bias",
            found=f"scoring {moe.scoring}, correction_bias {moe.correction_bias}",
            fix="ds.save(model, path) writes a bundle",
        )
    return {
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        **latent_config_to(config),
        "rope_interleave": config.attention.pairs,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "num_nextn_predict_layers": 0,
    }


FAMILY = Family(
    template="DeepSeekMoE",
    config_from=_config_from,
    config_to=_config_to,
    rules=latent_rules,
    ignored=(r"\.rotary_emb\.inv_freq$", r"^model\.layers\.61\."),
    base_prefix="model.",
    keep_float32=("router.correction_bias",),
)
"""How DeepSeek V3 checkpoints map to DeepSeekMoE."""
