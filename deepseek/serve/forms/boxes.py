"""Answers of detection: boxes in pixels of the picture as it was sent (upright), cut at its edges.

Letterbox, resizing and middle crop are undone; a box that lies in the letterbox's bars alone is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from deepseek.nn.boxes import clip_boxes
from deepseek.serve.forms.checks import NUMBER, json_number, object_schema
from deepseek.serve.forms.classes import label_name
from deepseek.serve.forms.form import Gives, Schema
from deepseek.serve.forms.stages import Placed


class BoxGiver:
    """What is found in a picture, the surest first."""

    gives: Gives = "boxes"
    options: Mapping[str, Schema] = {}

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = list(labels)
        box: Schema = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
        one: Schema = {"label": {"type": "string"}, "index": {"type": "integer"}, "score": NUMBER, "box": box}
        side: Schema = {"type": ["integer", "null"]}
        self.schema: Schema = object_schema(
            {"objects": {"type": "array", "items": object_schema(one)}, "width": side, "height": side}
        )

    def give(self, prediction: Any, about: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of the detections of one picture."""
        found, placed = prediction[0], about.get("placed")
        boxes = found.boxes.double().cpu()
        if placed is not None:
            boxes = in_picture(boxes, placed)
        objects = [
            {
                "label": label_name(self._labels, label),
                "index": label,
                "score": json_number(score),
                "box": box,
            }
            for box, score, label in zip(boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
            if box[2] > box[0] and box[3] > box[1]
        ]
        height, width = placed.sides if placed is not None else (None, None)
        return {"objects": objects, "width": width, "height": height}


def in_picture(boxes: torch.Tensor, placed: Placed) -> torch.Tensor:
    """Return xyxy boxes (n, 4) in pixels of what the model saw as pixels of the picture, cut at its edges."""
    (height, width), (scale_y, scale_x), (top, left) = placed
    scale = boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
    offset = boxes.new_tensor([left, top, left, top])
    return clip_boxes((boxes - offset) / scale, height, width)
