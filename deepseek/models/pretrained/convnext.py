"""ConvNeXt in the Hugging Face layout: `ConvNextForImageClassification`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepseek.errors import ModelError
from deepseek.models.pretrained.image_fields import read_image_fields, write_image_fields
from deepseek.models.pretrained.rules import Family, Rule

_SETTINGS = {
    "patch_size": "patch_size",
    "depths": "depths",
    "hidden_sizes": "hidden_sizes",
    "layer_scale": "layer_scale_init_value",
    "drop_path": "drop_path_rate",
    "norm_eps": "layer_norm_eps",
}


def _config_from(values: Mapping[str, Any]) -> dict[str, Any]:
    if values.get("hidden_act", "gelu") != "gelu":
        raise ModelError(
            "the checkpoint uses an activation that ConvNeXt does not have",
            found=f"hidden_act = {values['hidden_act']!r}",
            wanted="gelu",
        )
    settings = {ours: values[theirs] for ours, theirs in _SETTINGS.items() if theirs in values}
    for name in ("layer_scale", "drop_path"):
        if name in settings:
            settings[name] = float(settings[name])
    return {**read_image_fields(values), "norm_eps": 1e-12, **settings}


def _config_to(config: Any) -> dict[str, Any]:
    return {
        "model_type": "convnext",
        "architectures": ["ConvNextForImageClassification"],
        **write_image_fields(config),
        **{theirs: getattr(config, ours) for ours, theirs in _SETTINGS.items()},
        "num_stages": len(config.depths),
        "hidden_act": "gelu",
    }


def _rules(config: Any) -> Sequence[Rule]:
    block = "convnext.encoder.stages.{}.layers.{}."
    return [
        Rule("downsampling.0.0.", "convnext.embeddings.patch_embeddings."),
        Rule("downsampling.0.1.", "convnext.embeddings.layernorm."),
        Rule("downsampling.{}.{}.", "convnext.encoder.stages.{}.downsampling_layer.{}."),
        Rule("stages.{}.{}.depthwise.", f"{block}dwconv."),
        Rule("stages.{}.{}.norm.", f"{block}layernorm."),
        Rule("stages.{}.{}.up.", f"{block}pwconv1."),
        Rule("stages.{}.{}.down.", f"{block}pwconv2."),
        Rule("stages.{}.{}.scale", f"{block}layer_scale_parameter"),
        Rule("norm.", "convnext.layernorm."),
        Rule("classifier.", "classifier."),
    ]


FAMILY = Family(
    template="ConvNeXt",
    config_from=_config_from,
    config_to=_config_to,
    rules=_rules,
    base_prefix="convnext.",
    heads=("classifier.",),
)
