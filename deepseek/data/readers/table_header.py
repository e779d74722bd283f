"""The names of a table's columns and its delimiter, found from its first rows. Not here: the rows (`csv_table`)."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from deepseek.data.readers.rows import MAX_LINE_BYTES, lines_of
from deepseek.data.readers.tree import shown
from deepseek.errors import ConfigError, DataError

_LOOKED_AT = 21
_DELIMITERS = (",", "\t", ";", "|")
_USUAL = frozenset(
    {"label", "labels", "text", "sentence", "sentence1", "content", "id", "target", "class", "path", "name"}
)


class Header(NamedTuple):
    """Names of the columns, whether the first row holds them, and what stands between the cells."""

    names: tuple[str, ...]
    in_file: bool
    delimiter: str

    def words(self) -> str:
        """Return the columns for a message."""
        return f"{len(self.names)} columns ({', '.join(self.names)[:80]})"


def find_header(
    file: Path, in_file: bool | None, columns: Sequence[str] | None, delimiter: str | None, encoding: str
) -> Header:
    """Return the header of a table. Raises ConfigError for wrong options, DataError for a file without rows."""
    try:
        with open(file, "rb") as handle:
            lines = [line for _, line in islice(lines_of(handle, MAX_LINE_BYTES), _LOOKED_AT) if line]
    except OSError as error:
        raise DataError(f"can't read {shown(file)}", found=error.strerror) from None
    text = [line.decode(encoding, "replace").replace("\0", "") for line in lines]
    if not text:
        raise DataError(f"{shown(file)} holds no rows", found="an empty file", wanted="a table")
    delimiter = _delimiter(text) if delimiter is None else delimiter
    if len(delimiter) != 1 or delimiter in '"\r\n ':
        raise ConfigError("a delimiter is one character", found=repr(delimiter), wanted="such as ','")
    rows = _rows(text, delimiter)
    if not rows:
        fix = "its lines may end in CR alone: convert them" if "\r" in text[0] else None
        raise DataError(f"{shown(file)} is no table", found=repr(text[0][:60]), fix=fix)
    width = len(rows[0])
    named = _names_columns(rows) if in_file is None else in_file
    names = tuple(columns) if columns is not None else tuple(rows[0]) if named else _numbered(width)
    if len(names) != width or len(set(names)) != width:
        raise (ConfigError if columns is not None else DataError)(
            f"{shown(file)}: each column needs a name of its own",
            found=f"{len(names)} names ({', '.join(names)[:120]}) for {width} columns",
            fix=None if columns is not None else "name them with columns=, or pass header=False",
        )
    return Header(names, named, delimiter)


def _numbered(width: int) -> tuple[str, ...]:
    return tuple(f"column_{place}" for place in range(width))


def _rows(text: Sequence[str], delimiter: str) -> list[list[str]]:
    """Return the rows that can be read whole; the last line looked at may be in the middle of one."""
    rows: list[list[str]] = []
    reader = csv.reader((line + "\n" for line in text), delimiter=delimiter, strict=True)
    try:
        rows.extend(row for row in reader if row)
    except csv.Error:
        pass
    return rows


def _delimiter(text: Sequence[str]) -> str:
    """Return the delimiter under which the rows agree best on more than one cell, or the comma."""

    def agreement(delimiter: str) -> int:
        widths = Counter(len(row) for row in _rows(text, delimiter))
        return max((count for width, count in widths.items() if width > 1), default=0)

    return max(_DELIMITERS, key=agreement)


def _names_columns(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether the first row looks like names of columns."""
    first, below = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    if len(set(first)) != len(first) or any(not cell.strip() or _is_number(cell) for cell in first):
        return False
    if any(cell.strip().lower() in _USUAL for cell in first):
        return True
    return any(below and all(_is_number(row[column]) for row in below) for column in range(len(first)))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
