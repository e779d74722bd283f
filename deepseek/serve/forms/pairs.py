"""Texts, images and sounds side by side as instances, for models whose vectors are compared; and their answer.

A model of vectors takes every kind in each call. What an instance leaves out is filled with the model's own example,
and the shorter lists with their last entry; the answer has the vectors of what was sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from deepseek.data.pipeline.stage import Sample
from deepseek.errors import ModelError, RequestError
from deepseek.serve.forms.checks import NUMBER, TOO_LARGE, json_number, known_keys, object_schema, type_name
from deepseek.serve.forms.form import FormLimits, Gives, Schema, Taken, Taker, Takes
from deepseek.serve.forms.stages import inputs_of

_NAMES = {"texts": "text", "images": "image", "sounds": "audio"}
_KEYS = {
    "text": ("input_ids", "attention_mask"),
    "image": ("pixel_values",),
    "audio": ("input_features",),
}


class PairsTaker:
    """`texts`, `images` and `sounds`, each a list; those that the bundle's pipeline makes inputs of."""

    takes: Takes = "texts"

    def __init__(self, takers: Mapping[str, Taker], example: Mapping[str, Tensor], limits: FormLimits) -> None:
        self._takers = {plural: takers[one] for plural, one in _NAMES.items() if one in takers}
        self._example, self._most = example, limits.rows
        lists = {
            plural: {"type": "array", "items": taker.schema, "minItems": 1, "maxItems": limits.rows}
            for plural, taker in self._takers.items()
        }
        self.schema: Schema = {**object_schema(lists, ()), "minProperties": 1}

    def take(self, body: Any) -> Taken:
        """Return a batch of as many rows as the longest list. Raises RequestError."""
        if not isinstance(body, Mapping):
            raise RequestError("lists to compare are an object", field="texts", found=type_name(body))
        known_keys(body, self._takers, "texts")
        if not body:
            raise RequestError("there is nothing to compare", field="texts", wanted=", ".join(self._takers))
        parts = {plural: self._part(plural, body[plural]) for plural in body}
        rows = max(len(next(iter(part.values()))) for part in parts.values())
        batch = {name: value[:1].expand(rows, *value.shape[1:]) for name, value in self._example.items()}
        for plural, part in parts.items():
            for name in _KEYS[_NAMES[plural]]:
                batch.pop(name, None)
            batch |= {name: _filled(value, rows) for name, value in part.items()}
        counts = {_NAMES[plural]: len(next(iter(part.values()))) for plural, part in parts.items()}
        return Taken({name: value.contiguous() for name, value in batch.items()}, {"counts": counts})

    def example(self) -> Any:
        """Return one of each kind."""
        return {plural: [taker.example()] for plural, taker in self._takers.items()}

    def probes(self) -> Sequence[Any]:
        """Return instances with the probes of each kind."""
        return [{plural: [probe]} for plural, taker in self._takers.items() for probe in taker.probes()]

    def _part(self, plural: str, entries: Any) -> dict[str, Tensor]:
        if not isinstance(entries, list) or not entries:
            found = "an empty list" if entries == [] else type_name(entries)
            raise RequestError(f"'{plural}' is a list", field=plural, found=found, wanted="at least one")
        if len(entries) > self._most:
            found, wanted = f"{len(entries)}", f"at most {self._most}"
            raise RequestError(f"'{plural}' has too many", field=plural, status=TOO_LARGE, found=found, wanted=wanted)
        taken = [self._taker_of(plural)(entry).batch for entry in entries]
        rows: list[Sample] = [{name: value[0] for name, value in one.items() if name in _OWN[plural]} for one in taken]
        return {name: value for name, value in inputs_of(rows).items() if name in _KEYS[_NAMES[plural]]}

    def _taker_of(self, plural: str) -> Callable[[Any], Taken]:
        return self._takers[plural].take


_OWN = {"texts": ("input_ids",), "images": ("pixel_values",), "sounds": ("input_features",)}


class VectorGiver:
    """The vectors of each kind, of length 1, and the cosines of every pair of kinds: one row for each of the first."""

    gives: Gives = "vectors"
    options: Mapping[str, Schema] = {}

    def __init__(self) -> None:
        rows: Schema = {"type": "array", "items": {"type": "array", "items": NUMBER}}
        self.schema: Schema = object_schema(
            {
                "vectors": {"type": "object", "additionalProperties": rows},
                "similarity": {"type": "object", "additionalProperties": rows},
            }
        )

    def give(self, prediction: Any, about: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of vectors by kind, (rows, dim) each. Raises ModelError where rows are missing."""
        counts: Mapping[str, int] = about.get("counts") or {name: len(rows) for name, rows in prediction.items()}
        for name, count in counts.items():
            if name in prediction and len(prediction[name]) < count:
                found = f"{len(prediction[name])} vectors of {name}"
                raise ModelError("the outputs are not those of all rows", found=found, wanted=f"{count}, a row each")
        sent = {name: prediction[name][:count].float().cpu() for name, count in counts.items() if name in prediction}
        pairs = {f"{one}_to_{other}": sent[one] @ sent[other].T for one, other in combinations(sent, 2)}
        return {
            "vectors": {name: _rows(value) for name, value in sent.items()},
            "similarity": {name: _rows(value) for name, value in pairs.items()},
        }


def _rows(values: Tensor) -> list[list[float | None]]:
    return [[json_number(one) for one in row] for row in values.tolist()]


def _filled(value: Tensor, rows: int) -> Tensor:
    missing = rows - len(value)
    return torch.cat([value, value[-1:].expand(missing, *value.shape[1:])]) if missing else value
