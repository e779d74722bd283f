"""Is this request unlike all that the model was trained on? Its distance from the nearest of some typical rows.

Numbers go through sign(x) log(1 + |x|) and are scaled by the range of the normal rows; a category counts by how rare it
is. Typical rows are k-means centres. The alarm's threshold is an order statistic of the scores that normal rows get
from centres made without them, so that normal traffic alarms about as often as chosen (cross-conformal prediction:
Vovk, Annals of Mathematics and Artificial Intelligence 74, 2015). Plain numpy.
Not here: drift of many requests (see `drift`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from deepseek.serve.monitoring.features import Value, numbers

FALSE_ALARMS = 0.002
"""Share of normal rows that alarm."""
LEAST_ROWS = 2000
"""Normal rows below which no threshold can hold that rate."""
_CENTRES = 256
_FOLDS = 4
_ROUNDS = 12
_RARITY = 0.2
"""How much a category's surprisal (in nats) counts beside a number's range of 1."""
_MOST_FITTED = 20_000
_CATEGORIES = 255

Matrix = NDArray[np.float64]


class _Column(NamedTuple):
    """How a feature becomes a coordinate; of categories `rare` tells the surprisal of each known one."""

    name: str
    low: float = 0.0
    width: float = 1.0
    middle: float = 0.0
    rare: Mapping[str, float] | None = None
    unseen: float = 0.0


class Anomalies:
    """Scores rows of features; above `threshold` they are anomalies."""

    def __init__(self, columns: Sequence[_Column], centres: Matrix, threshold: float) -> None:
        self.threshold = threshold
        self._columns = tuple(columns)
        self._centres = centres
        self._lengths = (centres**2).sum(1)
        self._numeric = [place for place, column in enumerate(self._columns) if column.rare is None]
        scales = [(one.low, one.width, one.middle) for one in self._columns if one.rare is None]
        self._lows, self._widths, self._middles = np.array(scales, dtype=np.float64).reshape(-1, 3).T

    @classmethod
    def of(
        cls, rows: Sequence[Mapping[str, Value]], *, false_alarms: float = FALSE_ALARMS, seed: int = 0
    ) -> Self | None:
        """Learn from normal rows; None for too few of them. Each row's score counts that was made without that row."""
        if len(rows) < LEAST_ROWS or int(false_alarms * (len(rows) + 1)) < 1:
            return None
        random = np.random.default_rng(seed)
        order = random.permutation(len(rows))[:_MOST_FITTED].tolist()
        scores = []
        for fold in range(_FOLDS):
            held = [rows[place] for place in order[fold::_FOLDS]]
            others = [rows[place] for count, place in enumerate(order) if count % _FOLDS != fold]
            scores.append(cls._fitted(others, random).scores(held))
        found = cls._fitted([rows[place] for place in order], random)
        highest = np.sort(np.concatenate(scores))[::-1]
        found.threshold = float(highest[int(false_alarms * (len(highest) + 1)) - 1])
        return found

    @classmethod
    def _fitted(cls, rows: Sequence[Mapping[str, Value]], random: np.random.Generator) -> Self:
        columns = [_learned(name, [row.get(name) for row in rows]) for name in rows[0]]
        empty = cls(columns, np.zeros((1, len(columns))), math.inf)
        return cls(columns, _rounded(_centres(empty._points(rows), random)), math.inf)

    def scores(self, rows: Sequence[Mapping[str, Value]]) -> Matrix:
        """Return each row's distance from the nearest typical one."""
        return np.sqrt(_nearest(self._points(rows), self._centres, self._lengths)[1])

    def unusual(self, row: Mapping[str, Value], most: int = 3) -> list[str]:
        """Return the features that lie farthest from the nearest typical row, the farthest first."""
        point = self._points([row])
        place = _nearest(point, self._centres, self._lengths)[0][0]
        apart = np.abs(point[0] - self._centres[place])
        return [self._columns[column].name for column in np.argsort(-apart)[:most] if apart[column] > 0]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        columns = [
            {key: value for key, value in column._asdict().items() if value is not None} for column in self._columns
        ]
        return {"threshold": self.threshold, "columns": columns, "centres": self._centres.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        columns = [_Column(**column) for column in values["columns"]]
        centres = np.asarray(values["centres"], dtype=np.float64)
        threshold = float(values["threshold"])
        if centres.ndim != 2 or centres.shape[1] != len(columns) or not np.isfinite(centres).all():
            raise ValueError(f"centres of shape {centres.shape} for {len(columns)} columns")
        return cls(columns, centres, threshold)

    def _points(self, rows: Sequence[Mapping[str, Value]]) -> Matrix:
        points = np.empty((len(rows), len(self._columns)))
        names = [self._columns[place].name for place in self._numeric]
        values = numbers([row.get(name) for row in rows for name in names]).reshape(len(rows), -1)
        scaled = (_logged(values) - self._lows) / self._widths
        points[:, self._numeric] = np.where(np.isnan(scaled), self._middles, np.clip(scaled, -0.5, 1.5))
        for place, column in enumerate(self._columns):
            if column.rare is not None:
                get, unseen = column.rare.get, column.unseen
                cells = [row.get(column.name) for row in rows]
                points[:, place] = [get(cell, unseen) if isinstance(cell, str) else unseen for cell in cells]
        return points


def _learned(name: str, values: Sequence[Value]) -> _Column:
    if any(isinstance(value, float) for value in values):
        known = _logged(numbers(values))
        known = known[~np.isnan(known)]
        low, middle, high = np.quantile(known, [0.001, 0.5, 0.999]) if len(known) else (0.0, 0.0, 1.0)
        width = float(high - low) or 1.0
        return _Column(name, float(low), width, float(middle - low) / width)
    texts = [value for value in values if isinstance(value, str)]
    names, counts = np.unique(np.array(texts, dtype=object).astype(str), return_counts=True)
    often = np.argsort(-counts)[:_CATEGORIES]
    whole = len(values) + 1
    rare = {str(names[place]): _RARITY * -math.log((counts[place] + 0.5) / whole) for place in often}
    return _Column(name, rare=rare, unseen=_RARITY * -math.log(0.5 / whole))


def _logged(values: Matrix) -> Matrix:
    found: Matrix = np.sign(values) * np.log1p(np.abs(values))
    return found


def _rounded(centres: Matrix) -> Matrix:
    return np.round(centres, 4)


def _centres(points: Matrix, random: np.random.Generator) -> Matrix:
    """Return k-means centres (Lloyd, 1982)."""
    centres = points[random.permutation(len(points))[:_CENTRES]].copy()
    for _ in range(_ROUNDS):
        owners = _nearest(points, centres, (centres**2).sum(1))[0]
        counts = np.bincount(owners, minlength=len(centres))
        order = np.argsort(owners, kind="stable")
        used = np.flatnonzero(counts)
        starts = np.concatenate([[0], np.cumsum(counts[used])[:-1]])
        centres[used] = np.add.reduceat(points[order], starts, axis=0) / counts[used, None]
    return centres


def _nearest(points: Matrix, centres: Matrix, lengths: Matrix) -> tuple[NDArray[np.int64], Matrix]:
    """Return of each point the nearest centre and its squared distance."""
    places = np.empty(len(points), dtype=np.int64)
    squares = np.empty(len(points))
    for start in range(0, len(points), 4096):
        part = points[start : start + 4096]
        apart = (part**2).sum(1)[:, None] + lengths - 2 * part @ centres.T
        place = apart.argmin(1)
        places[start : start + 4096] = place
        squares[start : start + 4096] = np.maximum(apart[np.arange(len(part)), place], 0.0)
    return places, squares
