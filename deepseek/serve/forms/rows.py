"""A table's row as an instance: an object of cells by column. Not here: scaling and numbering (`TableColumns`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from deepseek.data.pipeline.stage import Sample, Stage, StageGroup
from deepseek.data.table_columns import TableColumns
from deepseek.errors import DataError, RequestError, did_you_mean, nearest
from deepseek.serve.forms.checks import number_of, object_schema, refused, shown, text_of, type_name, whole_of
from deepseek.serve.forms.form import FormLimits, Schema, Taken, Takes
from deepseek.serve.forms.stages import Road

_WIDEST = 10**18
_NO_DRAWS = np.random.default_rng(0)


class RowTaker:
    """A row through the pipeline's stages. Columns that the training left out may be sent and are not read."""

    takes: Takes = "row"

    def __init__(self, stages: Sequence[Stage | StageGroup], columns: TableColumns, limits: FormLimits) -> None:
        self._road, self._limits, self._columns = Road(stages), limits, columns
        self._numeric, self._categorical = columns.numeric or (), columns.categorical or ()
        self._names = [*self._numeric, *self._categorical]
        self._known = {*self._names, *columns.ignore}
        self._alone = len(stages) == 1 and stages[0] is columns
        cells: dict[str, Schema] = {name: {"type": ["number", "null"]} for name in self._numeric}
        cells |= {name: {"type": ["string", "number"]} for name in self._categorical}
        cells |= {name: {} for name in columns.ignore}
        self.schema: Schema = object_schema(cells, self._names)

    def take(self, body: Any) -> Taken:
        """Return the row's tensors. Raises RequestError naming a column that is unknown, missing or of another type."""
        if not isinstance(body, Mapping):
            found = type_name(body)
            raise RequestError("a row is an object", field="row", found=found, wanted="a value for each column by name")
        self._check_names(body)
        row = {name: self._number(name, body[name]) for name in self._numeric}
        cells = {name: self._cell(name, body[name]) for name in self._categorical}
        sample: Sample = {"row": {**row, **cells}}
        return Taken(self._one(sample) if self._alone else self._road.batch([sample], "row"), {})

    def example(self) -> Any:
        """Return a row of the training's means and first categories."""
        columns = self._columns
        numbers = [math.copysign(math.expm1(abs(one)), one) if columns.log else one for one in columns.means or ()]
        words = [known[0] if known else "" for known in columns.categories or ()]
        return dict(zip(self._names, [*numbers, *words], strict=True))

    def probes(self) -> Sequence[Any]:
        """Return the example: rows are all alike."""
        return [self.example()]

    def _one(self, sample: Sample) -> dict[str, Tensor]:
        """Return what `Road.batch` does where `TableColumns` is the only stage: nothing is drawn there."""
        try:
            made = self._columns.apply(sample, _NO_DRAWS)
        except DataError as error:
            raise refused(error, "row") from error
        return {name: value[None] for name, value in made.items() if isinstance(value, Tensor)}

    def _check_names(self, row: Mapping[Any, Any]) -> None:
        missing = [name for name in self._names if name not in row]
        for key in row:
            if key not in self._known:
                name = shown(key)
                fix = did_you_mean(name, missing if nearest(name, missing) else self._known)
                raise RequestError("the row has an unknown column", field=f"row.{name}", found=name, fix=fix)
        if missing:
            name = missing[0]
            fix = f"give all of {', '.join(self._names)}"[:300]
            raise RequestError(f"the row lacks the column '{name}'", field=f"row.{name}", wanted=name, fix=fix)

    def _number(self, name: str, value: object) -> float:
        """Return a number; null is a missing one."""
        return math.nan if value is None else number_of(value, f"row.{name}")

    def _cell(self, name: str, value: object) -> str | int | float:
        """Return a category, as the reader of a table gives it: text, or a number."""
        if isinstance(value, str):
            return text_of(value, f"row.{name}", self._limits.text_characters) if value else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            found = type_name(value)
            raise RequestError(f"'{name}' is text or a number", field=f"row.{name}", found=found, wanted="a category")
        if isinstance(value, int):
            return whole_of(value, f"row.{name}", -_WIDEST, _WIDEST)
        return number_of(value, f"row.{name}")
