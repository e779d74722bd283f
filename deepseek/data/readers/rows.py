"""Rows of text files by number: where each begins, in arrays, and what was passed over on the way.

Files are read once when a data set is opened, line by line in bounded memory; after that any row is one seek away.
An index costs 28 bytes a row and nothing beside the files. Not here: what a row means (`jsonl`, `csv_table`).
"""

from __future__ import annotations

import codecs
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from deepseek.data.columns import StringColumn
from deepseek.data.readers.tree import shown
from deepseek.data.record_forms import BadRecord
from deepseek.data.records import MAX_LINE_BYTES as MAX_LINE_BYTES
from deepseek.data.records import ReadReport
from deepseek.errors import ConfigError, DataError

OnError = Literal["raise", "skip"]
_BLOCK = 1 << 20


@dataclass(frozen=True)
class RowIndex:
    """Rows of one or more files: `file` (into `files`), `start` and `size` in bytes, `line` from 1; all (rows,)."""

    files: StringColumn
    file: NDArray[np.int32]
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    line: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start)

    def path(self, row: int) -> str:
        """Return the file that a row is in."""
        return self.files[int(self.file[row])]

    def where(self, row: int) -> str:
        """Return `file:line` for messages."""
        return f"{shown(self.path(row))}:{self.line[row]}"

    def read(self, row: int) -> bytes:
        """Return the bytes of a row. Raises DataError where the file is gone or has become shorter."""
        size = int(self.size[row])
        try:
            with open(self.path(row), "rb", buffering=0) as handle:
                handle.seek(int(self.start[row]))
                data = handle.read(size)
        except OSError as error:
            raise DataError(f"can't read {self.where(row)}", found=error.strerror) from None
        if len(data) != size:
            raise DataError(
                f"{self.where(row)} is no longer there", found="a shorter file", fix="open the data set again"
            )
        return data


class RowIndexBuilder:
    """Collects rows for a RowIndex."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = StringColumn(str(path) for path in files)
        self._file, self._start, self._size, self._line = array("i"), array("q"), array("q"), array("q")

    def add(self, file: int, start: int, size: int, line: int) -> None:
        """Add a row."""
        self._file.append(file)
        self._start.append(start)
        self._size.append(size)
        self._line.append(line)

    def done(self) -> RowIndex:
        """Return the index."""
        return RowIndex(
            self._files,
            np.array(self._file, dtype=np.int32),
            np.array(self._start, dtype=np.int64),
            np.array(self._size, dtype=np.int64),
            np.array(self._line, dtype=np.int64),
        )


def check_policy(on_error: str, max_line_bytes: int) -> None:
    """Raise ConfigError for an unknown policy or a limit that lets nothing through."""
    if on_error not in get_args(OnError):
        raise ConfigError("unknown on_error policy", found=repr(on_error), wanted="'raise' or 'skip'")
    if max_line_bytes < 1:
        raise ConfigError("max_line_bytes is too small", found=max_line_bytes, wanted="at least 1")


def reject(where: str, bad: BadRecord, on_error: OnError, report: ReadReport) -> None:
    """Raise DataError for a bad row, or count it in `report`."""
    message = f"{where}: {bad.reason}"
    if on_error == "raise":
        fix = "correct it, or pass on_error='skip' to go on without such rows"
        raise DataError(message, found=bad.detail or None, fix=fix)
    report.skipped += 1
    report.reasons[bad.reason] = report.reasons.get(bad.reason, 0) + 1
    if len(report.examples) < 5:
        report.examples.append(f"{message}: {bad.detail}" if bad.detail else message)


def lines_of(handle: IO[bytes], max_line_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield (first byte, line without its end) for each line after a byte order mark; None for one that is too long.

    At most `max_line_bytes` of a line are held.
    """
    start = 3 if handle.read(3) == codecs.BOM_UTF8 else 0
    handle.seek(start)
    while line := handle.readline(max_line_bytes + 2):
        size = len(line)
        bare = line[:-1] if line.endswith(b"\n") else line
        if len(bare) > max_line_bytes + bare.endswith(b"\r"):
            while not line.endswith(b"\n") and (line := handle.readline(_BLOCK)):
                size += len(line)
            yield start, None
        else:
            yield start, bare.removesuffix(b"\r")
        start += size


def index_lines(
    files: Sequence[Path],
    check: Callable[[bytes], object] | None,
    on_error: OnError,
    max_line_bytes: int,
    report: ReadReport,
) -> RowIndex:
    """Return the index of the lines that are not blank and that `check` takes; it raises BadRecord for others.

    Raises DataError for a bad line or a file that can't be read under "raise", and where no row is left.
    """
    rows = RowIndexBuilder(files)
    for number, path in enumerate(files):
        report.files += 1
        try:
            with open(path, "rb") as handle:
                for line, (start, data) in enumerate(lines_of(handle, max_line_bytes), 1):
                    try:
                        if data is None:
                            raise BadRecord("line too long", f"more than {max_line_bytes} bytes")
                        if not data.strip():
                            report.empty += 1
                            continue
                        if check is not None:
                            check(data)
                    except BadRecord as bad:
                        reject(f"{shown(path)}:{line}", bad, on_error, report)
                    else:
                        rows.add(number, start, len(data), line)
                        report.documents += 1
                        report.bytes_read += len(data)
        except OSError as error:
            reject(shown(path), BadRecord("can't be read", str(error.strerror)), on_error, report)
    return finished(rows, files, report)


def finished(rows: RowIndexBuilder, files: Sequence[Path], report: ReadReport) -> RowIndex:
    """Return the index. Raises DataError where it has no row."""
    index = rows.done()
    if not len(index):
        reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(report.reasons.items()))
        raise DataError(
            f"no row in {shown(files[0]) if len(files) == 1 else f'{len(files)} files'}",
            found=reasons or ("blank lines only" if report.empty else "nothing"),
            wanted="at least one row",
        )
    return index
