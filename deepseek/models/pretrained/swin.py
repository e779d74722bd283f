"""Swin checkpoints (`SwinForImageClassification`, `SwinModel`) and our Swin.

Queries, keys and values are three layers there and one here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepseek.errors import ModelError
from deepseek.models.pretrained.rules import Family, Rule


def _config_from(theirs: Mapping[str, Any]) -> dict[str, Any]:
    activation = theirs.get("hidden_act", "gelu")
    if activation != "gelu":
        raise ModelError("Swin has no such activation", found=repr(activation), wanted="'gelu'")
    if theirs.get("use_absolute_embeddings"):
        raise ModelError("Swin has no absolute positions", found="use_absolute_embeddings: true", wanted="false")
    return {
        "image_size": _side("image_size", theirs.get("image_size", 224)),
        "patch_size": _side("patch_size", theirs.get("patch_size", 4)),
        "num_channels": theirs.get("num_channels", 3),
        "num_labels": theirs.get("num_labels") or len(theirs.get("id2label") or {}) or 2,
        "width": theirs.get("embed_dim", 96),
        "depths": list(theirs.get("depths", (2, 2, 6, 2))),
        "num_heads": list(theirs.get("num_heads", (3, 6, 12, 24))),
        "window_size": theirs.get("window_size", 7),
        "ff_ratio": float(theirs.get("mlp_ratio", 4.0)),
        "qkv_bias": theirs.get("qkv_bias", True),
        "dropout": float(theirs.get("hidden_dropout_prob", 0.0)),
        "attention_dropout": float(theirs.get("attention_probs_dropout_prob", 0.0)),
        "stochastic_depth": float(theirs.get("drop_path_rate", 0.1)),
        "norm_eps": float(theirs.get("layer_norm_eps", 1e-5)),
    }


def _side(name: str, value: Any) -> Any:
    """Return the side of a square; theirs may be [height, width]."""
    if not isinstance(value, list | tuple):
        return value
    if len(set(value)) != 1:
        raise ModelError(f"Swin is meant for squares; config.json has another {name}", found=value, wanted="one side")
    return value[0]


def _config_to(config: Any) -> dict[str, Any]:
    labels = [f"LABEL_{index}" for index in range(config.num_labels)]
    return {
        "model_type": "swin",
        "architectures": ["SwinForImageClassification"],
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.num_channels,
        "embed_dim": config.width,
        "depths": config.depths,
        "num_heads": config.num_heads,
        "window_size": config.window_size,
        "mlp_ratio": config.ff_ratio,
        "qkv_bias": config.qkv_bias,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "drop_path_rate": config.stochastic_depth,
        "use_absolute_embeddings": False,
        "layer_norm_eps": config.norm_eps,
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def _rules(config: Any) -> Sequence[Rule]:
    block = "swin.encoder.layers.{}.blocks.{}."
    attention = block + "attention.self."
    ours = "stages.{}.{}."
    return (
        Rule("patch_embedding.projection.", "swin.embeddings.patch_embeddings.projection."),
        Rule("patch_norm.", "swin.embeddings.norm."),
        Rule(ours + "attention.qkv.", (f"{attention}query.", f"{attention}key.", f"{attention}value."), "concat"),
        Rule(ours + "attention.bias_table", attention + "relative_position_bias_table"),
        Rule(ours + "attention.out.", block + "attention.output.dense."),
        Rule(ours + "attention_norm.", block + "layernorm_before."),
        Rule(ours + "feed_forward_norm.", block + "layernorm_after."),
        Rule(ours + "feed_forward.up.", block + "intermediate.dense."),
        Rule(ours + "feed_forward.down.", block + "output.dense."),
        Rule("merging.{}.", "swin.encoder.layers.{}.downsample."),
        Rule("norm.", "swin.layernorm."),
        Rule("classifier.", "classifier."),
    )


FAMILY = Family(
    template="Swin",
    config_from=_config_from,
    config_to=_config_to,
    rules=_rules,
    ignored=(r"relative_position_index$", r"embeddings\.mask_token$"),
    base_prefix="swin.",
    heads=("classifier.",),
)
"""How Swin checkpoints map to Swin."""
