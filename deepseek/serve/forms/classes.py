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
        self._names = _Names(enumerate(labels))
        one: Schema = {"label": {"type": "string"}, "index": {"type": "integer", "minimum": 0}, "score": NUMBER}
        self.options: Mapping[str, Schema] = {"top_k": {"type": "integer", "minimum": 1, "maximum": 100_000}}
        self.schema: Schema = object_schema({**one, "classes": {"type": "array", "items": object_schema(one)}})

    def give(self, prediction: Any, about: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of probabilities (1, num_labels)."""
        chances: Tensor = prediction.reshape(-1, prediction.shape[-1])[0].float().cpu()
        best = chances.topk(min(int(options.get("top_k", DEFAULT_TOP)), len(chances)))
        return self._told(best.indices.tolist(), [json_number(score) for score in best.values.tolist()])

    def tell(self, numbers: list[float], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of finite probabilities."""
        best = sorted(range(len(numbers)), key=numbers.__getitem__, reverse=True)
        del best[int(options.get("top_k", DEFAULT_TOP)) :]
        return self._told(best, [numbers[index] for index in best])

    def _told(self, indices: Sequence[int], scores: Sequence[float | None]) -> dict[str, Any]:
        names = self._names
        found = [
            {"label": names[index], "index": index, "score": score}
            for index, score in zip(indices, scores, strict=True)
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
        return self.tell(prediction[0].flatten().tolist(), options)

    def tell(self, numbers: list[float], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of values in a list."""
        return {"values": [json_number(value) for value in numbers]}


class _Names(dict[int, str]):
    """Names of classes; a class without one is called by its number."""

    def __missing__(self, index: int) -> str:
        return str(index)


def label_name(labels: Sequence[str], index: int) -> str:
    """Return the name of a class, its number where it has none."""
    return labels[index] if 0 <= index < len(labels) else str(index)
