"""Answers of classes and of values: the likeliest classes with their probabilities; numbers in the data's unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from deepseek.serve.forms.checks import NUMBER, json_number, object_schema
from deepseek.serve.forms.form import Gives, Schema

DEFAULT_TOP = 5


class ClassGiver:
    """The likeliest `top_k` classes, best first, and the first of them apart."""

    gives: Gives = "classes"

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = list(labels)
        one: Schema = {"label": {"type": "string"}, "index": {"type": "integer", "minimum": 0}, "score": NUMBER}
        self.options: Mapping[str, Schema] = {"top_k": {"type": "integer", "minimum": 1, "maximum": 100_000}}
        self.schema: Schema = object_schema({**one, "classes": {"type": "array", "items": object_schema(one)}})

    def give(self, prediction: Any, about: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of probabilities (1, num_labels)."""
        chances: Tensor = prediction.reshape(-1, prediction.shape[-1])[0].float().cpu()
        best = chances.topk(min(int(options.get("top_k", DEFAULT_TOP)), len(chances)))
        found = [
            {"label": label_name(self._labels, index), "index": index, "score": json_number(score)}
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        return {**found[0], "classes": found}


class ValueGiver:
    """The values of a regression, in the data's own unit."""

    gives: Gives = "values"
    options: Mapping[str, Schema] = {}

    def __init__(self) -> None:
        self.schema: Schema = object_schema({"values": {"type": "array", "items": NUMBER}})

    def give(self, prediction: Any, about: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of values (1,) or (1, n)."""
        return {"values": [json_number(value) for value in prediction[0].flatten().tolist()]}


def label_name(labels: Sequence[str], index: int) -> str:
    """Return the name of a class, its number where it has none."""
    return labels[index] if 0 <= index < len(labels) else str(index)
