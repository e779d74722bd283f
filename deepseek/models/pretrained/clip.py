"""CLIP checkpoints (`CLIPModel`) and our CLIP.

Their `eos_token_id: 2`, in the files of 2021, means that the token of the highest number ends a text. The audio tower
has no place in this layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepseek.errors import ModelError
from deepseek.models.pretrained.rules import Family, Rule

_ACTIVATIONS = ("quick_gelu", "gelu")
_HIGHEST_ENDS = 2
_TOWERS = {"text": "text_config", "image": "vision_config"}


def _config_from(theirs: Mapping[str, Any]) -> dict[str, Any]:
    # old files have the towers twice: what is in the *_dict counts
    text, image = ({**(theirs.get(name) or {}), **(theirs.get(f"{name}_dict") or {})} for name in _TOWERS.values())
    eos = text.get("eos_token_id", 49407)
    size, patch = image.get("image_size", 224), image.get("patch_size", 32)
    if not isinstance(size, int) or not isinstance(patch, int):
        raise ModelError("CLIP's images and patches are squares", found=f"image_size {size}, patch_size {patch}")
    return {
        "text": {
            **_tower_from(text, d_model=512, num_heads=8),
            "vocab_size": text.get("vocab_size", 49408),
            "max_length": text.get("max_position_embeddings", 77),
            "eos_id": None if eos == _HIGHEST_ENDS else eos,
        },
        "image": {
            **_tower_from(image, d_model=768, num_heads=12),
            "image_size": size,
            "patch_size": patch,
            "num_channels": image.get("num_channels", 3),
        },
        "projection_dim": theirs.get("projection_dim", 512),
        "logit_scale_init": theirs.get("logit_scale_init_value", 2.6592),
    }


def _tower_from(theirs: Mapping[str, Any], d_model: int, num_heads: int) -> dict[str, Any]:
    activation = theirs.get("hidden_act", "quick_gelu")
    if activation not in _ACTIVATIONS:
        raise ModelError("CLIP has no such activation", found=repr(activation), wanted=" or ".join(_ACTIVATIONS))
    return {
        "num_layers": theirs.get("num_hidden_layers", 12),
        "d_model": theirs.get("hidden_size", d_model),
        "num_heads": theirs.get("num_attention_heads", num_heads),
        "d_ff": theirs.get("intermediate_size", 4 * d_model),
        "activation": activation,
        "attention_dropout": float(theirs.get("attention_dropout", 0.0)),
        "norm_eps": theirs.get("layer_norm_eps", 1e-5),
    }


def _config_to(config: Any) -> dict[str, Any]:
    if config.audio is not None:
        raise ModelError(
            "CLIP's layout has no audio tower", found="audio: ...", fix="ds.save(model, path) writes a bundle"
        )
    text, image = config.text, config.image
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "text_config": {
            "model_type": "clip_text_model",
            **_tower_to(text),
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.max_length,
            "eos_token_id": _HIGHEST_ENDS if text.eos_id is None else text.eos_id,
            "projection_dim": config.projection_dim,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            **_tower_to(image),
            "image_size": image.image_size,
            "patch_size": image.patch_size,
            "num_channels": image.num_channels,
            "projection_dim": config.projection_dim,
        },
        "projection_dim": config.projection_dim,
        "logit_scale_init_value": config.logit_scale_init,
    }


def _tower_to(tower: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": tower.num_layers,
        "hidden_size": tower.d_model,
        "num_attention_heads": tower.num_heads,
        "intermediate_size": tower.d_ff,
        "hidden_act": tower.activation,
        "attention_dropout": tower.attention_dropout,
        "layer_norm_eps": tower.norm_eps,
    }


def _rules(config: Any) -> Sequence[Rule]:
    rules = [
        Rule("logit_scale", "logit_scale"),
        Rule("text.projection.", "text_projection."),
        Rule("text.token_embedding.", "text_model.embeddings.token_embedding."),
        Rule("text.position_embedding.", "text_model.embeddings.position_embedding."),
        Rule("text.norm.", "text_model.final_layer_norm."),
        Rule("image.projection.", "visual_projection."),
        Rule("image.class_token", "vision_model.embeddings.class_embedding"),
        Rule("image.patch_embedding.", "vision_model.embeddings.patch_embedding."),
        Rule("image.position_embedding.", "vision_model.embeddings.position_embedding."),
        Rule("image.input_norm.", "vision_model.pre_layrnorm."),
        Rule("image.norm.", "vision_model.post_layernorm."),
    ]
    for tower, model in (("text", "text_model"), ("image", "vision_model")):
        ours, theirs = f"{tower}.blocks.{{}}.", f"{model}.encoder.layers.{{}}."
        for leaf in ("weight", "bias"):
            parts = tuple(f"{theirs}self_attn.{part}_proj.{leaf}" for part in "qkv")
            rules.append(Rule(f"{ours}attention.qkv.{leaf}", parts, "concat"))
        rules += [
            Rule(f"{ours}attention.out.", f"{theirs}self_attn.out_proj."),
            Rule(f"{ours}attention_norm.", f"{theirs}layer_norm1."),
            Rule(f"{ours}feed_forward.up.", f"{theirs}mlp.fc1."),
            Rule(f"{ours}feed_forward.down.", f"{theirs}mlp.fc2."),
            Rule(f"{ours}feed_forward_norm.", f"{theirs}layer_norm2."),
        ]
    return rules


FAMILY = Family(
    template="CLIP",
    config_from=_config_from,
    config_to=_config_to,
    rules=_rules,
    ignored=(r"embeddings\.position_ids$",),
)
"""How CLIP checkpoints map to CLIP."""
