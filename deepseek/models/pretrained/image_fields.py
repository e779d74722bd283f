"""What the config.json of an image classifier has in common: labels, image size, activation.

Not here: what belongs to one family (its own file).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepseek.errors import ModelError

_ACTIVATIONS = {"relu": "relu", "relu6": "relu6", "swish": "silu", "silu": "silu"}
_ACTIVATIONS |= {"hardswish": "hardswish", "gelu": "gelu"}


def read_image_fields(values: Mapping[str, Any], image_size: int = 224) -> dict[str, Any]:
    """Return `num_channels`, `num_labels` and `image_size`, which is the longer side of two."""
    size = values.get("image_size", image_size)
    return {
        "num_channels": values.get("num_channels", 3),
        "num_labels": read_num_labels(values),
        "image_size": max(size) if isinstance(size, list) else size,
    }


def read_num_labels(values: Mapping[str, Any]) -> int:
    """Return the number of labels; where config.json names none, there are two."""
    names = values.get("id2label")
    return len(names) if names else int(values.get("num_labels") or 2)


def write_image_fields(config: Any) -> dict[str, Any]:
    """Return the fields of `read_image_fields` as config.json has them."""
    labels = {index: f"LABEL_{index}" for index in range(config.num_labels)}
    return {
        "num_channels": config.num_channels,
        "image_size": config.image_size,
        "id2label": {str(index): label for index, label in labels.items()},
        "label2id": {label: index for index, label in labels.items()},
    }


def read_activation(name: Any) -> str:
    """Return our name of an activation. Raises ModelError for one we do not have."""
    if name not in _ACTIVATIONS:
        raise ModelError(
            "the checkpoint uses an activation that the template does not have",
            found=f"hidden_act = {name!r}",
            wanted=f"one of {', '.join(sorted(_ACTIVATIONS))}",
        )
    return _ACTIVATIONS[name]
