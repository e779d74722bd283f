"""Parquet files by row groups, with pyarrow (extra [data]).

Source: https://parquet.apache.org/docs/file-format. Not here: blocks and commits (`task`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deepseek.data.etl.rows import Row
from deepseek.data.readers.tree import shown
from deepseek.errors import ConfigError, DataError
from deepseek.lazy import require

_AT_ONCE = 1024
_GROUP_BYTES = 64 << 20
_GROUP_ROWS = 1 << 16


def _open(path: str) -> Any:
    parquet, arrow = require("pyarrow.parquet", "data"), require("pyarrow", "data")
    try:
        return parquet.ParquetFile(path, memory_map=False)
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"{shown(path)} is no whole Parquet file", found=str(error)[:200]) from None


def row_groups(path: str) -> int:
    """Return the number of row groups. Raises DataError for a file that is damaged, MissingExtraError."""
    with _open(path) as file:
        return int(file.num_row_groups)


def read_group(path: str, group: int) -> Iterator[list[Row]]:
    """Yield the rows of a row group, some at a time. Raises DataError where it is damaged."""
    arrow = require("pyarrow", "data")
    with _open(path) as file:
        try:
            for batch in file.iter_batches(_AT_ONCE, row_groups=[group], use_threads=False):
                yield batch.to_pylist()
        except (OSError, ValueError, arrow.ArrowException) as error:
            raise DataError(f"{shown(path)} can't be read", found=f"row group {group}: {error}"[:300]) from None


class ParquetWriter:
    """Writes rows as a Parquet file of row groups of at most 65,536 rows.

    The types of the columns are given (Arrow's names), or those of the first row group.
    """

    def __init__(self, path: Path, columns: Sequence[str], types: Sequence[str]) -> None:
        self._arrow, self._parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
        self._path = path
        self._writer: Any = None
        self._names = tuple(columns)
        self._schema = arrow_schema(columns, types) if types else None
        self._held: list[Row] = []
        self._bytes = 0

    def add(self, row: Row) -> None:
        """Add a row. Raises DataError where the values of a row group don't fit its columns."""
        self._held.append(row)
        self._bytes += sum(len(value) for value in row.values() if isinstance(value, (str, bytes)))
        if len(self._held) >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._write()

    def close(self) -> str:
        """Write what is left; return the schema as text, for comparison with the other files."""
        if self._held or self._schema is not None:
            self._write()
        if self._writer is not None:
            self._writer.close()
        return "" if self._schema is None else str(self._schema.to_string())

    def _write(self) -> None:
        try:
            values = [self._column(name) for name in self._names]
            table = self._arrow.Table.from_arrays(values, names=list(self._names))
            if self._schema is None:
                self._schema = table.schema
            table = table.cast(self._schema)
        except (self._arrow.ArrowException, OverflowError) as error:
            raise DataError(
                "the values of a column are of several types",
                found=str(error)[:300],
                fix="pass write(columns={'name': 'int64', ...}), or make them one type with map",
            ) from None
        if self._writer is None:
            self._writer = self._parquet.ParquetWriter(str(self._path), self._schema)
        self._writer.write_table(table)
        self._held, self._bytes = [], 0

    def _column(self, name: str) -> Any:
        kind = None if self._schema is None else self._schema.field(name).type
        return self._arrow.array([row[name] for row in self._held], type=kind)


def arrow_schema(columns: Sequence[str], types: Sequence[str]) -> Any:
    """Return the schema of columns. Raises ConfigError for an unknown type, MissingExtraError without pyarrow."""
    arrow = require("pyarrow", "data")
    fields = []
    for name, kind in zip(columns, types, strict=True):
        try:
            fields.append((name, arrow.type_for_alias(kind)))
        except (ValueError, TypeError):
            raise ConfigError(
                f"unknown type of the column '{name}'", found=repr(kind), wanted="'int64', 'double', 'string', ..."
            ) from None
    return arrow.schema(fields)
