"""Tables as text (CSV, TSV), one sample a row, any row in O(1).

Source: RFC 4180, with any ASCII-compatible encoding; quoted cells may hold line ends. Not here: typed columns on disk
(Parquet), transformations (`deepseek.data.etl`).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepseek.data.pipeline.stage import Sample
from deepseek.data.readers.rows import (
    MAX_LINE_BYTES,
    OnError,
    RowIndex,
    RowIndexBuilder,
    check_policy,
    finished,
    lines_of,
    reject,
)
from deepseek.data.readers.survey import Survey
from deepseek.data.readers.table_header import Header, find_header
from deepseek.data.readers.tree import classes_of, shown
from deepseek.data.record_forms import BadRecord
from deepseek.data.records import ReadReport
from deepseek.errors import ConfigError, DataError

_RESERVED = ("index", "epoch")
# a number that starts with 0, such as a postcode, is text: its zeros count
_INT = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(
    r"[+-]?(((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?|inf(inity)?|nan)", re.IGNORECASE
)


class CsvTable:
    """The rows of a CSV file, or of all CSV files of a folder that have the same columns.

    A sample has one key for each column (but `index` and `epoch`, which pipelines use), and `path`. Columns in which
    every cell is a whole number become int, those of numbers float, an empty cell among numbers NaN; all others are
    text, also numbers that start with a zero too many. `header` says whether the first
    row names the columns; left out, it does if none of its cells is a number but a column below it is, or if it has a
    usual name such as "label". Without header columns are called `column_0`, `column_1`, ... or by `columns`.

    `label` names the column that becomes `label` ("label" if there is one): whole numbers stay, text becomes an id by
    `class_names`, sorted or given. `text` names the column that becomes `text`; of two columns, the one that is not the
    label. `delimiter` is found from the first rows if not given.

    Rows are checked when the file is opened: another number of cells, no label, a quote without end, NUL bytes and
    bytes that are not in `encoding` are bad; `on_error` "raise" ends with DataError at `file:line`, "skip" counts in
    `report`. A cell has at most 131,072 characters (`csv.field_size_limit`).
    """

    def __init__(
        self,
        path: str | Path,
        *,
        header: bool | None = None,
        columns: Sequence[str] | None = None,
        label: str | None = None,
        text: str | None = None,
        class_names: Sequence[str] | None = None,
        delimiter: str | None = None,
        encoding: str = "utf-8",
        on_error: OnError = "raise",
    ) -> None:
        check_policy(on_error, 1)
        _check_encoding(encoding)
        survey = Survey.of(path)
        names = list(survey.files) if survey.is_file else survey.names("csv")
        if not names:
            raise DataError(f"{shown(path)} holds no tables", found=survey.summary(), wanted=".csv files")
        files = [survey.root / name for name in names]
        self._encoding = encoding
        self._header = _one_header(files, header, columns, delimiter, encoding)
        self.columns = self._header.names
        self._label, self._text = _roles(self.columns, label, text)
        self._kinds = [0] * len(self.columns)
        self._given = None if class_names is None else frozenset(class_names)
        classes: set[str] = set()
        self.report = ReadReport()
        self._rows = self._index(files, classes, on_error)
        self.class_names: tuple[str, ...] = ()
        if self._label is not None and self._kinds[self._label] == 2:
            self.class_names = classes_of(classes) if class_names is None else tuple(class_names)
        self._ids = {name: number for number, name in enumerate(self.class_names)}

    def __len__(self) -> int:
        return len(self._rows)

    def sizes(self) -> NDArray[np.int64]:
        """Return the bytes of each row."""
        return self._rows.size

    def read(self, index: int) -> Sample:
        """Return sample `index`. Raises DataError where the file has changed."""
        lines = self._rows.read(index).splitlines(keepends=True)
        try:
            cells = next(csv.reader((line.decode(self._encoding) for line in lines), delimiter=self._header.delimiter))
            if len(cells) != len(self.columns):
                raise ValueError(f"{len(cells)} cells")
            sample: Sample = {}
            for column, cell in enumerate(cells):
                if column == self._label:
                    sample["label"] = self._ids[cell] if self._ids else _number(cell, self._kinds[column])
                elif column == self._text:
                    sample["text"] = cell
                elif self.columns[column] not in _RESERVED:
                    sample[self.columns[column]] = _number(cell, self._kinds[column])
        except (csv.Error, ValueError, KeyError, StopIteration) as error:
            raise DataError(f"{self._rows.where(index)}: the row has changed", found=str(error)[:200]) from None
        return {**sample, "path": self._rows.path(index)}

    def _index(self, files: Sequence[Path], classes: set[str], on_error: OnError) -> RowIndex:
        rows = RowIndexBuilder(files)
        for number, file in enumerate(files):
            self.report.files += 1
            records = _records(file, self._header.delimiter, self._encoding)
            for position, (start, size, line, cells) in enumerate(records):
                if position == 0 and self._header.in_file:
                    continue
                try:
                    if isinstance(cells, BadRecord):
                        raise cells
                    if not cells:
                        self.report.empty += 1
                        continue
                    self._look(cells, classes)
                except BadRecord as bad:
                    reject(f"{shown(file)}:{line}", bad, on_error, self.report)
                else:
                    rows.add(number, start, size, line)
                    self.report.documents += 1
        return finished(rows, files, self.report)

    def _look(self, cells: list[str], classes: set[str]) -> None:
        """Check a row, and widen the types of its columns where it needs that. Raises BadRecord."""
        if len(cells) != len(self._kinds):
            raise BadRecord("another number of cells", f"{len(cells)}; the table has {len(self._kinds)} columns")
        if self._label is not None:
            name = cells[self._label]
            if not name:
                raise BadRecord("no label")
            if self._given is not None and name not in self._given:
                raise BadRecord("unknown class", repr(name)[:60])
            classes.add(name)
        for column, kind in enumerate(self._kinds):
            if kind < 2:
                while kind < 2 and not _fits(cells[column], kind):
                    kind += 1
                self._kinds[column] = kind


def _fits(cell: str, kind: int) -> bool:
    return kind == 2 or not cell and kind == 1 or (_FLOAT if kind else _INT).fullmatch(cell) is not None


def _number(cell: str, kind: int) -> int | float | str:
    """Return the cell as int (kind 0), float (1) or text (2)."""
    return cell if kind == 2 else float(cell or "nan") if kind else int(cell)


def _records(file: Path, delimiter: str, encoding: str) -> Iterator[tuple[int, int, int, list[str] | BadRecord]]:
    """Yield (first byte, size, line, cells) of each row; in place of the cells what is wrong with it."""
    first: tuple[int, int] | None = None  # byte and line at which the row begins
    end, broken = 0, ""

    def decoded() -> Iterator[str]:
        nonlocal first, end, broken
        for line, (start, data) in enumerate(lines_of(handle, MAX_LINE_BYTES), 1):
            first, end = first or (start, line), start + len(data or b"")
            try:
                if data is None or b"\0" in data:
                    raise ValueError("line too long" if data is None else "NUL bytes")
                yield data.decode(encoding) + "\n"
            except ValueError as error:
                broken = f"not valid {encoding}" if isinstance(error, UnicodeDecodeError) else str(error)
                yield "\n"

    try:
        with open(file, "rb") as handle:
            reader = csv.reader(decoded(), delimiter=delimiter, strict=True)
            while True:
                first, broken = None, ""
                cells: list[str] | BadRecord
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    cells = BadRecord("not valid CSV", str(error))
                start, line = first or (end, 0)
                yield start, end - start, line, BadRecord(broken) if broken else cells
    except OSError as error:
        raise DataError(f"can't read {shown(file)}", found=error.strerror) from None


def _check_encoding(encoding: str) -> None:
    try:
        plain = "a,\n".encode(encoding) == b"a,\n"
    except LookupError:
        plain = False
    if not plain:
        raise ConfigError("an encoding that can't be used", found=repr(encoding), wanted="such as 'utf-8' or 'gb18030'")


def _one_header(
    files: Sequence[Path],
    in_file: bool | None,
    columns: Sequence[str] | None,
    delimiter: str | None,
    encoding: str,
) -> Header:
    """Return the header that all files have. Raises DataError where they differ."""
    headers = []
    for file in files:
        try:
            headers.append(find_header(file, in_file, columns, delimiter, encoding))
        except DataError as error:
            fix = [error.fix or "", f"or open another of the {len(files)} tables alone" if len(files) > 1 else ""]
            raise DataError(
                error.problem, found=error.found, wanted=error.wanted, fix=" ".join(fix).strip() or None
            ) from None
    for file, one in zip(files, headers, strict=True):
        if one != headers[0]:
            raise DataError(
                f"tables with different columns in one folder: {shown(files[0])} and {shown(file)}",
                found=f"{headers[0].words()} and {one.words()}",
                fix="open one of the files alone",
            )
    return headers[0]


def _roles(columns: Sequence[str], label: str | None, text: str | None) -> tuple[int | None, int | None]:
    """Return the places of the label and of the text. Raises ConfigError for a column that is not there."""
    for option, name in (("label", label), ("text", text)):
        if name is not None and name not in columns:
            raise ConfigError(f"{option} names no column", found=repr(name), wanted=", ".join(columns)[:300])
    if label is None and "label" in columns:
        label = "label"
    if text is None and label is not None and len(columns) == 2:
        text = next(name for name in columns if name != label)
    return (None if label is None else columns.index(label)), (None if text is None else columns.index(text))
