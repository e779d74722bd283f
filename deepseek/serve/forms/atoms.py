"""Atoms as instances: atomic numbers and positions, and a crystal's cell, for models of energies and forces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from deepseek.errors import RequestError
from deepseek.serve.forms.checks import (
    NUMBER,
    TOO_LARGE,
    json_number,
    known_keys,
    number_of,
    object_schema,
    type_name,
    whole_of,
)
from deepseek.serve.forms.form import FormLimits, Gives, Schema, Taken, Takes

_TRIPLE: Schema = {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}


class AtomsTaker:
    """`numbers` (atoms), `positions` (atoms, 3) in angstrom; for crystals `cell` (3, 3), vectors as rows."""

    takes: Takes = "atoms"

    def __init__(self, model: nn.Module, limits: FormLimits) -> None:
        self._most = limits.atoms
        self._heaviest = int(getattr(getattr(model, "config", None), "max_atomic_number", 118))
        number = {"type": "integer", "minimum": 1, "maximum": self._heaviest}
        self.schema: Schema = object_schema(
            {
                "numbers": {"type": "array", "items": number, "minItems": 1, "maxItems": self._most},
                "positions": {"type": "array", "items": _TRIPLE, "minItems": 1, "maxItems": self._most},
                "cell": {"type": "array", "items": _TRIPLE, "minItems": 3, "maxItems": 3},
            },
            ("numbers", "positions"),
        )

    def take(self, body: Any) -> Taken:
        """Return `atomic_numbers`, `positions` and `cell`. Raises RequestError."""
        if not isinstance(body, Mapping):
            found = type_name(body)
            raise RequestError("atoms are an object", field="atoms", found=found, wanted="numbers and positions")
        known_keys(body, ("numbers", "positions", "cell"), "atoms")
        numbers = body.get("numbers")
        if not isinstance(numbers, list) or not numbers:
            found = type_name(numbers) if numbers is not None else "no 'numbers'"
            raise RequestError("'numbers' is a list", field="numbers", found=found, wanted="one number an atom")
        if len(numbers) > self._most:
            found, wanted = f"{len(numbers)} atoms", f"at most {self._most}"
            raise RequestError(
                "there are too many atoms", field="numbers", status=TOO_LARGE, found=found, wanted=wanted
            )
        elements = [whole_of(one, "numbers", 1, self._heaviest) for one in numbers]
        batch = {
            "atomic_numbers": torch.tensor([elements]),
            "positions": torch.tensor([_triples(body.get("positions"), "positions", len(numbers))]),
        }
        if body.get("cell") is not None:
            batch["cell"] = torch.tensor([_triples(body["cell"], "cell", 3)])
        return Taken(batch, {})

    def example(self) -> Any:
        """Return a molecule of hydrogen."""
        return {"numbers": [1, 1], "positions": [[0.0, 0.0, 0.0], [0.74, 0.0, 0.0]]}

    def probes(self) -> Sequence[Any]:
        """Return none: the task calls the model in its own way."""
        return []


class EnergyGiver:
    """The energy, and the force on each atom, in the unit of the training data."""

    gives: Gives = "energies"
    options: Mapping[str, Schema] = {}

    def __init__(self) -> None:
        force: Schema = {"type": "array", "items": NUMBER, "minItems": 3, "maxItems": 3}
        self.schema: Schema = object_schema({"energy": NUMBER, "forces": {"type": "array", "items": force}})

    def give(self, prediction: Any, about: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of energies (1,) and forces (1, atoms, 3)."""
        energies, forces = prediction
        rows = [[json_number(one) for one in row] for row in forces[0].tolist()]
        return {"energy": json_number(float(energies.flatten()[0])), "forces": rows}


def _triples(value: object, field: str, count: int) -> list[list[float]]:
    if not isinstance(value, list) or len(value) != count:
        found = f"{len(value)} rows" if isinstance(value, list) else type_name(value)
        raise RequestError(f"'{field}' has another shape", field=field, found=found, wanted=f"{count} rows of three")
    for row in value:
        if not isinstance(row, list) or len(row) != 3:
            found = f"a row of {len(row)}" if isinstance(row, list) else type_name(row)
            raise RequestError(f"'{field}' has another shape", field=field, found=found, wanted="rows of three numbers")
    return [[number_of(one, field) for one in row] for row in value]
