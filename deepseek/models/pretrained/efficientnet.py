"""EfficientNet in the Hugging Face layout: `EfficientNetForImageClassification`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepseek.errors import ModelError
from deepseek.models.pretrained.image_fields import read_activation, read_image_fields, write_image_fields
from deepseek.models.pretrained.rules import Family, Rule

_SETTINGS = {  # with the defaults of theirs, which are B7's
    "width_multiplier": ("width_coefficient", 2.0),
    "depth_multiplier": ("depth_coefficient", 3.1),
    "channel_divisor": ("depth_divisor", 8),
    "squeeze_ratio": ("squeeze_expansion_ratio", 0.25),
    "pooling": ("pooling_type", "mean"),
    "dropout": ("dropout_rate", 0.5),
    "drop_connect": ("drop_connect_rate", 0.2),
    "norm_eps": ("batch_norm_eps", 0.001),
    "symmetric_blocks": ("depthwise_padding", []),
}
_STAGES = {
    "kernel_size": ("kernel_sizes", [3, 3, 5, 3, 5, 5, 3]),
    "channels": ("out_channels", [16, 24, 40, 80, 112, 192, 320]),
    "depth": ("num_block_repeats", [1, 2, 2, 3, 3, 4, 1]),
    "stride": ("strides", [1, 2, 2, 2, 1, 2, 1]),
    "expand_ratio": ("expand_ratios", [1, 6, 6, 6, 6, 6, 6]),
}
_STEM, _LAST = 32, 1280
"""Channels of the first and last convolution, before scaling."""


def _config_from(values: Mapping[str, Any]) -> dict[str, Any]:
    columns = {ours: values.get(theirs, default) for ours, (theirs, default) in _STAGES.items()}
    inputs = [_STEM, *columns["channels"][:-1]]
    if list(values.get("in_channels", inputs)) != inputs:
        raise ModelError(
            "the checkpoint's stages do not follow one another",
            found=f"in_channels = {list(values['in_channels'])}",
            wanted=f"{inputs}, which is 32 and out_channels",
        )
    settings = {ours: values.get(theirs, default) for ours, (theirs, default) in _SETTINGS.items()}
    for name in ("width_multiplier", "depth_multiplier"):
        settings[name] = float(settings[name])
    settings["stages"] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    # theirs is the decay of Keras: the share of the old statistics
    settings["norm_momentum"] = round(1 - values.get("batch_norm_momentum", 0.99), 12)
    settings["activation"] = read_activation(values.get("hidden_act", "swish"))
    return {**read_image_fields(values, image_size=600), **settings}


def _config_to(config: Any) -> dict[str, Any]:
    return {
        "model_type": "efficientnet",
        "architectures": ["EfficientNetForImageClassification"],
        **write_image_fields(config),
        **{theirs: getattr(config, ours) for ours, (theirs, _) in _SETTINGS.items()},
        **{theirs: [getattr(stage, ours) for stage in config.stages] for ours, (theirs, _) in _STAGES.items()},
        "in_channels": [_STEM, *(stage.channels for stage in config.stages[:-1])],
        "depthwise_padding": symmetric_blocks(config),
        "hidden_dim": config.width(_LAST),
        "batch_norm_momentum": round(1 - config.norm_momentum, 12),
        "hidden_act": config.activation,
    }


def symmetric_blocks(config: Any) -> list[int]:
    """Return the blocks that meet an odd size and halve it, for images of `config.image_size`.

    Raises ModelError where their layout has no word for the padding: that of the first convolution for an odd size.
    """
    if config.symmetric_blocks is not None:
        return list(config.symmetric_blocks)
    if config.image_size % 2:
        raise ModelError(
            "the Hugging Face layout fixes the padding, and for an even image_size only",
            found=f"image_size = {config.image_size}",
            wanted="an even number",
            fix="build the model with symmetric_blocks=[]",
        )
    size, found = config.image_size // 2, []
    for index, (shape, _) in enumerate(config.shapes()):
        if shape.stride == 2 and size % 2:
            found.append(index)
        size = -(-size // shape.stride)
    return found


def _rules(config: Any) -> Sequence[Rule]:
    block = "efficientnet.encoder.blocks.{}."
    return [
        Rule("stem.conv.", "efficientnet.embeddings.convolution."),
        Rule("stem.norm.", "efficientnet.embeddings.batchnorm."),
        Rule("blocks.{}.expand.conv.", f"{block}expansion.expand_conv."),
        Rule("blocks.{}.expand.norm.", f"{block}expansion.expand_bn."),
        Rule("blocks.{}.depthwise.conv.", f"{block}depthwise_conv.depthwise_conv."),
        Rule("blocks.{}.depthwise.norm.", f"{block}depthwise_conv.depthwise_norm."),
        Rule("blocks.{}.squeeze_excite.", f"{block}squeeze_excite."),
        Rule("blocks.{}.project.conv.", f"{block}projection.project_conv."),
        Rule("blocks.{}.project.norm.", f"{block}projection.project_bn."),
        Rule("last.conv.", "efficientnet.encoder.top_conv."),
        Rule("last.norm.", "efficientnet.encoder.top_bn."),
        Rule("classifier.", "classifier."),
    ]


FAMILY = Family(
    template="EfficientNet",
    config_from=_config_from,
    config_to=_config_to,
    rules=_rules,
    base_prefix="efficientnet.",
    heads=("classifier.",),
)
