"""Answers of segmentation: the class of each pixel of the picture as it was sent, and each class's share of it.

A pixel has the class of the place that its centre falls on in what the model saw; one that a middle crop cut away is
background (0). A mask of a picture is a PNG of class numbers, or runs of (class, length) row by row; of a volume an NPY
file.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepseek.serve.forms.checks import object_schema
from deepseek.serve.forms.classes import label_name
from deepseek.serve.forms.form import Gives, Schema
from deepseek.serve.forms.images import B64_SCHEMA, png_bytes
from deepseek.serve.forms.stages import Placed
from deepseek.serve.forms.volumes import npy_b64
from deepseek.tasks.segmentation import chosen_classes


class MaskGiver:
    """The mask in the form that `mask` asks for: "file" (PNG, NPY), "runs", or "none" for the shares alone."""

    gives: Gives = "mask"

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = list(labels)
        self.options: Mapping[str, Schema] = {"mask": {"enum": ["file", "runs", "none"]}}
        share: Schema = object_schema(
            {
                "label": {"type": "string"},
                "index": {"type": "integer"},
                "pixels": {"type": "integer"},
                "share": {"type": "number"},
            }
        )
        pair: Schema = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}
        self.schema: Schema = object_schema(
            {
                "size": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
                "classes": {"type": "array", "items": share},
                "mask": object_schema({"b64": B64_SCHEMA, "format": {"enum": ["png", "npy"]}}),
                "runs": {"type": "array", "items": pair},
            },
            ("size", "classes"),
        )

    def give(self, prediction: Any, about: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of probabilities (1, channels, *space)."""
        mask: Tensor = chosen_classes(prediction)[0].cpu()
        if about.get("placed") is not None:
            mask = mask_in_picture(mask, about["placed"])
        classes = max(2, prediction.shape[1])
        levels = mask.numpy().astype(np.uint8 if classes <= 256 else np.uint16)
        counts = np.bincount(levels.ravel(), minlength=classes)
        shares = [
            {
                "label": label_name(self._labels, index),
                "index": index,
                "pixels": int(count),
                "share": int(count) / levels.size,
            }
            for index, count in enumerate(counts)
        ]
        answer: dict[str, Any] = {"size": list(levels.shape), "classes": shares}
        wanted = options.get("mask", "file")
        if wanted == "file":
            answer["mask"] = _file(levels)
        elif wanted == "runs":
            answer["runs"] = runs_of(levels)
        return answer


def mask_in_picture(mask: Tensor, placed: Placed) -> Tensor:
    """Return the class of each pixel of the picture, (*sides), from the mask (*space) of what the model saw."""
    for axis, (side, scale, offset) in enumerate(zip(*placed, strict=True)):
        place = ((torch.arange(side, dtype=torch.float64) + 0.5) * scale + offset).floor().long()
        seen = (place >= 0) & (place < mask.shape[axis])
        mask = mask.index_select(axis, place.clamp(0, mask.shape[axis] - 1))
        mask = mask * seen.reshape(-1, *[1] * (mask.dim() - axis - 1))
    return mask


def runs_of(levels: NDArray[Any]) -> list[list[int]]:
    """Return [class, length] of each run of equal classes, in the order of rows."""
    flat = levels.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    lengths = np.diff(ends, prepend=0)
    return [[int(flat[end - 1]), int(length)] for end, length in zip(ends, lengths, strict=True)]


def _file(levels: NDArray[Any]) -> dict[str, str]:
    if levels.ndim != 2:
        return {"b64": npy_b64(levels), "format": "npy"}
    return {"b64": base64.b64encode(png_bytes(levels)).decode("ascii"), "format": "png"}
