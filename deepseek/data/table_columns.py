"""The stage that makes tensors of a table's row: numbers scaled, categories numbered.

What it needs to know of the table (mean and spread of each number, the categories) it learns from training rows; it is
then part of its settings, so that the stage in a bundle does the same. Not here: reading tables (`readers.csv_table`).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch

from deepseek.data.pipeline.stage import Domain, LearnedStage, Sample
from deepseek.errors import ConfigError, DataError, did_you_mean


@dataclass(frozen=True)
class TableColumns(LearnedStage):
    """`row` to `numeric` (n,) float32 and `categorical` (m,) int64; with `one_hot` to `features` (k,) float32 alone.

    `numeric` and `categorical` name the columns; left out, columns of numbers are numeric and those of text
    categorical, all but those in `ignore`. Numbers become (x - mean) / std of the training rows; with `log`,
    sign(x) log(1 + |x|) comes first, for columns that span many orders. A missing number becomes the mean. Category 0
    stands for what the training rows did not have, or for less than `min_count` rows.

    `means`, `stds` and `categories` are learned. Raises ConfigError for columns named twice.
    """

    numeric: tuple[str, ...] | None = None
    categorical: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()
    log: bool = False
    one_hot: bool = False
    min_count: int = 1
    means: tuple[float, ...] | None = None
    stds: tuple[float, ...] | None = None
    categories: tuple[tuple[str, ...], ...] | None = None

    takes: ClassVar[Domain] = Domain.ROW
    gives: ClassVar[Domain] = Domain.ROW

    def __post_init__(self) -> None:
        names = [*(self.numeric or ()), *(self.categorical or ()), *self.ignore]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ConfigError("TableColumns names a column twice", found=", ".join(twice), wanted="once in one list")
        if self.categories is not None:  # lists, as YAML has them
            object.__setattr__(self, "categories", tuple(tuple(column) for column in self.categories))

    @property
    def is_learned(self) -> bool:
        return None not in (self.means, self.stds, self.categories)

    @property
    def cardinalities(self) -> list[int]:
        """For each categorical column the number of its categories, the unknown one included."""
        return [len(column) + 1 for column in self.categories or ()]

    @property
    def width(self) -> int:
        """The number of numeric columns; with `one_hot` the length of `features`."""
        return len(self.means or ()) + (sum(self.cardinalities) if self.one_hot else 0)

    def learned(self, samples: Iterable[Sample]) -> Self:
        """Return the stage with means, spreads and categories of the rows. Raises DataError for unknown columns."""
        rows = [sample["row"] for sample in samples]
        if not rows:
            raise DataError("there is no row to learn from")
        numeric, categorical = self._columns(rows[0])
        table = np.array([self._numbers(row, numeric) for row in rows], dtype=np.float64).reshape(len(rows), -1)
        known = np.isfinite(table)
        counts = np.maximum(known.sum(axis=0), 1)
        means = np.where(known, table, 0.0).sum(axis=0) / counts
        spread = np.sqrt(np.where(known, (table - means) ** 2, 0.0).sum(axis=0) / counts)
        seen = [Counter(_category(row, name) for row in rows) for name in categorical]
        return dataclasses.replace(
            self,
            numeric=numeric,
            categorical=categorical,
            means=tuple(means.tolist()),
            stds=tuple(np.where(spread > 0, spread, 1.0).tolist()),
            categories=tuple(tuple(sorted(k for k, n in one.items() if n >= self.min_count)) for one in seen),
        )

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample with its tensors in place of the row. Raises DataError for a row that lacks a column."""
        if self.means is None or self.stds is None or self.categories is None:
            raise DataError("TableColumns does not know the table", fix="call learned(samples) with training samples")
        row, rest = sample["row"], {key: value for key, value in sample.items() if key != "row"}
        scaled = (np.array(self._numbers(row, self.numeric or ())) - self.means) / self.stds
        numbers = torch.from_numpy(np.nan_to_num(scaled, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32))
        ids = []
        for name, known in zip(self.categorical or (), self.categories, strict=True):
            cell = _category(row, name)
            ids.append(known.index(cell) + 1 if cell in known else 0)
        if self.one_hot:
            hot = torch.zeros(sum(self.cardinalities))
            starts = np.concatenate([[0], np.cumsum(self.cardinalities)[:-1]]).astype(int) if ids else np.zeros(0, int)
            hot[torch.from_numpy(starts + np.array(ids, dtype=int))] = 1.0
            return {**rest, "features": torch.cat([numbers, hot])}
        tensors = {"numeric": numbers} if self.means else {}
        return {**rest, **tensors, **({"categorical": torch.tensor(ids)} if ids else {})}

    def _columns(self, row: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        named = [*(self.numeric or ()), *(self.categorical or ()), *self.ignore]
        for name in named:
            if name not in row:
                raise DataError("the table has no such column", found=repr(name), fix=did_you_mean(name, row))
        left = [name for name in row if name not in named]
        numeric, categorical = self.numeric, self.categorical
        if numeric is None:
            numeric = tuple(name for name in left if isinstance(row[name], int | float))
        if categorical is None:
            categorical = tuple(name for name in left if isinstance(row[name], str) and name not in numeric)
        if not numeric and not categorical:
            raise DataError("the table has no column to learn from", found=", ".join(row), wanted="numbers or text")
        return tuple(numeric), tuple(categorical)

    def _numbers(self, row: Mapping[str, Any], names: Iterable[str]) -> list[float]:
        try:
            values = [float(row[name]) for name in names]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError("the row lacks a number", found=f"{type(error).__name__}: {error}"[:200]) from None
        return [math.copysign(math.log1p(abs(value)), value) for value in values] if self.log else values


def _category(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        raise DataError("the row lacks a column", found=", ".join(row)[:200], wanted=name)
    return str(row[name])
