"""What is compared of a request: the cells of a row, or a few plain statistics of tensors and of a model's answers.

Values are floats (NaN: missing) and strings (None: missing), by name. Not here: what is done with them
(see `profile`, `drift`, `anomaly`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Value = float | str | None
Features = dict[str, Value]

_WIDE = 64
"""Columns up to which each is a feature of its own."""
_FEW = 16


def of_row(row: Mapping[str, Any]) -> Features:
    """Return the cells of a table's row."""
    return {str(name): _cell(cell) for name, cell in row.items()}


def of_inputs(inputs: Mapping[str, np.ndarray]) -> list[Features]:
    """Return the features of each row of a model's inputs (batch, ...).

    Narrow tables give their columns; token ids their length and variety; images, sound and all else mean, spread,
    extremes and size.
    """
    return _joined({name: _of_input(name, np.asarray(value)) for name, value in inputs.items()})


def of_outputs(outputs: Mapping[str, np.ndarray]) -> list[Features]:
    """Return the features of each row of a model's outputs: of classes the likeliest and how sure the model is."""
    return _joined({name: _of_output(name, np.asarray(value)) for name, value in outputs.items()})


def _cell(cell: object) -> Value:
    if isinstance(cell, bool | str):
        return str(cell)
    if isinstance(cell, int | float | np.integer | np.floating):
        return float(cell)
    return None


def _joined(parts: Mapping[str, list[Features]]) -> list[Features]:
    told = [part for part in parts.values() if part]  # some tell nothing
    count = min(map(len, told), default=0)
    return [{name: one for part in told for name, one in part[row].items()} for row in range(count)]


def _of_input(name: str, value: np.ndarray) -> list[Features]:
    if value.ndim == 0:
        return []
    if value.dtype == object:
        return [_of_text(name, row) for row in value]
    flat = value.reshape(len(value), -1)
    if value.dtype.kind in "iub":
        if value.ndim == 2 and flat.shape[1] <= _FEW:
            return [{f"{name}[{place}]": str(cell) for place, cell in enumerate(row)} for row in flat.tolist()]
        return [_of_ids(name, row) for row in flat]
    if value.ndim <= 2 and flat.shape[1] <= _WIDE:
        return [{f"{name}[{place}]": cell for place, cell in enumerate(row)} for row in flat.tolist()]
    return _statistics(name, flat)


def _of_output(name: str, value: np.ndarray) -> list[Features]:
    if value.ndim == 0 or value.dtype.kind != "f":
        return []
    flat = value.reshape(len(value), -1).astype(np.float64)
    if value.ndim == 2 and flat.shape[1] > 1:
        likely = _probabilities(flat)
        best = likely.argmax(1)
        return [
            {f"{name}.confidence": float(likely[row, best[row]]), f"{name}.class": str(best[row])}
            for row in range(len(flat))
        ]
    if flat.shape[1] == 1:
        return [{name: float(cell)} for cell in flat[:, 0]]
    return _statistics(name, flat)


def _statistics(name: str, flat: np.ndarray) -> list[Features]:
    values = flat.astype(np.float64)
    if not flat.shape[1]:
        return [{f"{name}.size": 0.0} for _ in flat]
    columns = {
        "mean": values.mean(1),
        "std": values.std(1),
        "low": values.min(1),
        "high": values.max(1),
        "size": np.full(len(flat), flat.shape[1]),
    }
    return [{f"{name}.{what}": float(column[row]) for what, column in columns.items()} for row in range(len(flat))]


def _of_ids(name: str, row: np.ndarray) -> Features:
    """Return length (without the zeros that fill a batch up) and share of different ids."""
    length = int(np.count_nonzero(row))
    return {f"{name}.length": float(length), f"{name}.variety": len(np.unique(row[row != 0])) / max(1, length)}


def _of_text(name: str, row: Any) -> Features:
    text = str(row) if isinstance(row, str) else " ".join(map(str, np.ravel(row)))
    ascii_share = sum(character < "\x80" for character in text) / len(text) if text else math.nan
    return {f"{name}.length": float(len(text)), f"{name}.ascii": ascii_share}


def _probabilities(values: np.ndarray) -> np.ndarray:
    """Return rows as probabilities: as they are where they are some, else by softmax."""
    if np.all(values >= 0) and np.allclose(values.sum(1), 1.0, atol=1e-3):
        return values
    shifted = np.exp(values - values.max(1, keepdims=True))
    found: np.ndarray = shifted / shifted.sum(1, keepdims=True)
    return found


def columns_of(rows: Sequence[Mapping[str, Value]], names: Sequence[str]) -> dict[str, list[Value]]:
    """Return the values of each feature; what a row lacks is missing."""
    return {name: [row.get(name) for row in rows] for name in names}


def numbers(values: Sequence[Value]) -> np.ndarray:
    """Return values as float64, what is no finite number as NaN."""
    found = np.array([value if isinstance(value, float) else math.nan for value in values], dtype=np.float64)
    return np.where(np.isfinite(found), found, math.nan)
