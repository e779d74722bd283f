"""ViT checkpoints (`ViTForImageClassification`, `ViTModel`) and our ViT.

Queries, keys and values are three layers there and one here. A pooling layer or a mask token, which only other heads
use, is not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepseek.errors import ModelError
from deepseek.models.pretrained.rules import Family, Rule


def _config_from(theirs: Mapping[str, Any]) -> dict[str, Any]:
    activation = theirs.get("hidden_act", "gelu")
    if activation != "gelu":
        raise ModelError("ViT has no such activation", found=repr(activation), wanted="'gelu'")
    return {
        "image_size": theirs.get("image_size", 224),
        "patch_size": theirs.get("patch_size", 16),
        "num_channels": theirs.get("num_channels", 3),
        "num_labels": theirs.get("num_labels") or len(theirs.get("id2label") or {}) or 2,
        "num_layers": theirs.get("num_hidden_layers", 12),
        "d_model": theirs.get("hidden_size", 768),
        "num_heads": theirs.get("num_attention_heads", 12),
        "d_ff": theirs.get("intermediate_size", 3072),
        "qkv_bias": theirs.get("qkv_bias", True),
        "dropout": float(theirs.get("hidden_dropout_prob", 0.0)),
        "attention_dropout": float(theirs.get("attention_probs_dropout_prob", 0.0)),
        "norm_eps": float(theirs.get("layer_norm_eps", 1e-12)),
    }


def _config_to(config: Any) -> dict[str, Any]:
    labels = [f"LABEL_{index}" for index in range(config.num_labels)]
    return {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification"],
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.num_channels,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.d_ff or 4 * config.d_model,
        "qkv_bias": config.qkv_bias,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "layer_norm_eps": config.norm_eps,
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def _rules(config: Any) -> Sequence[Rule]:
    layer = "vit.encoder.layer.{}."
    attention = layer + "attention.attention."
    return (
        Rule("class_token", "vit.embeddings.cls_token"),
        Rule("position_embedding", "vit.embeddings.position_embeddings"),
        Rule("patch_embedding.projection.", "vit.embeddings.patch_embeddings.projection."),
        Rule("blocks.{}.attention.qkv.", (f"{attention}query.", f"{attention}key.", f"{attention}value."), "concat"),
        Rule("blocks.{}.attention.out.", layer + "attention.output.dense."),
        Rule("blocks.{}.attention_norm.", layer + "layernorm_before."),
        Rule("blocks.{}.feed_forward_norm.", layer + "layernorm_after."),
        Rule("blocks.{}.feed_forward.up.", layer + "intermediate.dense."),
        Rule("blocks.{}.feed_forward.down.", layer + "output.dense."),
        Rule("norm.", "vit.layernorm."),
        Rule("classifier.", "classifier."),
    )


FAMILY = Family(
    template="ViT",
    config_from=_config_from,
    config_to=_config_to,
    rules=_rules,
    ignored=(r"^(vit\.)?pooler\.", r"embeddings\.mask_token$"),
    base_prefix="vit.",
    heads=("classifier.",),
)
"""How ViT checkpoints map to ViT."""
