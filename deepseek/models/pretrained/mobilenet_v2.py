"""MobileNetV2 in the Hugging Face layout: `MobileNetV2ForImageClassification`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepseek.models.pretrained.image_fields import read_activation, read_image_fields, write_image_fields
from deepseek.models.pretrained.rules import Family, Rule

_SETTINGS = {
    "width_multiplier": "depth_multiplier",
    "channel_divisor": "depth_divisible_by",
    "min_channels": "min_depth",
    "expand_ratio": "expand_ratio",
    "output_stride": "output_stride",
    "dropout": "classifier_dropout_prob",
    "norm_eps": "layer_norm_eps",
    "norm_momentum": "norm_momentum",  # not a setting of theirs: kept for a model saved by us
}
_FLAGS = {"first_layer_is_expansion": "expand_first_block", "finegrained_output": "shrink_last_layer"}
"""Theirs is true where ours is false."""
_DEFAULTS = {"classifier_dropout_prob": 0.8, "layer_norm_eps": 1e-3}
_UNITS = {
    "stem.": "mobilenet_v2.conv_stem.first_conv.",
    "last.": "mobilenet_v2.conv_1x1.",
    **{
        f"{ours}{part}.": f"mobilenet_v2.{theirs}{name}."
        for ours, theirs in (("first_block.", "conv_stem."), ("blocks.{}.", "layer.{}."))
        for part, name in (("expand", "expand_1x1"), ("depthwise", "conv_3x3"), ("project", "reduce_1x1"))
    },
}


def _config_from(values: Mapping[str, Any]) -> dict[str, Any]:
    values = {**_DEFAULTS, **values}
    settings = {ours: values[theirs] for ours, theirs in _SETTINGS.items() if theirs in values}
    for name in ("width_multiplier", "expand_ratio"):
        if name in settings:
            settings[name] = float(settings[name])
    return {
        **read_image_fields(values),
        **settings,
        **{ours: not values.get(theirs, True) for theirs, ours in _FLAGS.items()},
        "activation": read_activation(values.get("hidden_act", "relu6")),
        "padding": "same" if values.get("tf_padding", True) else "symmetric",
    }


def _config_to(config: Any) -> dict[str, Any]:
    return {
        "model_type": "mobilenet_v2",
        "architectures": ["MobileNetV2ForImageClassification"],
        **write_image_fields(config),
        **{theirs: getattr(config, ours) for ours, theirs in _SETTINGS.items()},
        **{theirs: not getattr(config, ours) for theirs, ours in _FLAGS.items()},
        "hidden_act": config.activation,
        "tf_padding": config.padding == "same",
    }


def _rules(config: Any) -> Sequence[Rule]:
    units = [
        Rule(f"{ours}{part}.", f"{theirs}{name}.")
        for ours, theirs in _UNITS.items()
        for part, name in (("conv", "convolution"), ("norm", "normalization"))
    ]
    return [*units, Rule("classifier.", "classifier.")]


FAMILY = Family(
    template="MobileNetV2",
    config_from=_config_from,
    config_to=_config_to,
    rules=_rules,
    base_prefix="mobilenet_v2.",
    heads=("classifier.",),
)
