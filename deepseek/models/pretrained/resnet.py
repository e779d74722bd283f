"""ResNet in the Hugging Face layout: `ResNetForImageClassification`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepseek.errors import ModelError
from deepseek.models.pretrained.image_fields import read_image_fields, write_image_fields
from deepseek.models.pretrained.rules import Family, Rule

_SETTINGS = {
    "block": "layer_type",
    "depths": "depths",
    "hidden_sizes": "hidden_sizes",
    "stem_size": "embedding_size",
    "first_stage_downsamples": "downsample_in_first_stage",
    "downsample_in_first_conv": "downsample_in_bottleneck",
}
_UNITS = {
    "stem.": "resnet.embedder.embedder.",
    "stages.{}.{}.convs.{}.": "resnet.encoder.stages.{}.layers.{}.layer.{}.",
    "stages.{}.{}.shortcut.": "resnet.encoder.stages.{}.layers.{}.shortcut.",
}


def _config_from(values: Mapping[str, Any]) -> dict[str, Any]:
    if values.get("hidden_act", "relu") != "relu":
        raise ModelError(
            "the checkpoint uses an activation that ResNet does not have",
            found=f"hidden_act = {values['hidden_act']!r}",
            wanted="relu",
        )
    settings = {ours: values[theirs] for ours, theirs in _SETTINGS.items() if theirs in values}
    return {**read_image_fields(values), **settings}


def _config_to(config: Any) -> dict[str, Any]:
    return {
        "model_type": "resnet",
        "architectures": ["ResNetForImageClassification"],
        **write_image_fields(config),
        **{theirs: getattr(config, ours) for ours, theirs in _SETTINGS.items()},
        "hidden_act": "relu",
    }


def _rules(config: Any) -> Sequence[Rule]:
    units = [
        Rule(f"{ours}{part}.", f"{theirs}{name}.")
        for ours, theirs in _UNITS.items()
        for part, name in (("conv", "convolution"), ("norm", "normalization"))
    ]
    return [*units, Rule("classifier.", "classifier.1.")]


FAMILY = Family(
    template="ResNet",
    config_from=_config_from,
    config_to=_config_to,
    rules=_rules,
    base_prefix="resnet.",
    heads=("classifier.",),
)
