"""Rows of a part of a CSV file (RFC 4180); quoted cells may hold line ends.

Not here: data sets out of tables with typed columns (`deepseek.data.readers.csv_table`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator

from deepseek.data.etl.lines import lines_between
from deepseek.data.record_forms import BadRecord

_BLOCK = 1 << 20


def has_quotes(path: str) -> bool:
    """Return whether a quote stands anywhere in a file. Raises OSError."""
    with open(path, "rb", buffering=0) as handle:
        while data := handle.read(_BLOCK):
            if b'"' in data:
                return True
    return False


def csv_rows(
    path: str, start: int, end: int, delimiter: str, encoding: str, max_line_bytes: int
) -> Iterator[tuple[int, list[str] | BadRecord]]:
    """Yield (first byte, cells) of the rows that begin in `start`..`end`; in place of the cells what is wrong.

    Where there are quotes, `start` has to be the beginning of a row. A row that can't be read ends with its line.
    Raises OSError.
    """
    first, broken = -1, ""

    def decoded() -> Iterator[str]:
        nonlocal first, broken
        # a row that begins before `end` may have lines behind it
        for place, line in lines_between(path, start, _FAR, max_line_bytes):
            if first < 0:
                first = place
            try:
                if line is None or b"\0" in line:
                    raise ValueError("line too long" if line is None else "NUL bytes")
                yield line.decode(encoding)
            except ValueError as error:
                broken = f"not valid {encoding}" if isinstance(error, UnicodeDecodeError) else str(error)
                yield "\n"

    reader = csv.reader(decoded(), delimiter=delimiter, strict=True)
    while True:
        first, broken = -1, ""
        cells: list[str] | BadRecord
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells = BadRecord("not valid CSV", str(error))
        if first >= end:
            return
        yield first, BadRecord(broken) if broken else cells


_FAR = 1 << 62
