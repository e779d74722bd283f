"""Rows of a block to its output files: each appears whole or not at all, under a name that its block gives it.

Not here: which blocks are done (`workplace`).
"""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from deepseek.data.etl.parquet import ParquetWriter
from deepseek.data.etl.rows import Record, Row
from deepseek.data.etl.steps import Write
from deepseek.data.record_forms import BadRecord
from deepseek.errors import ConfigError, DataError
from deepseek.files import atomic_folder, atomic_path

_BUFFER = 1 << 20
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


class Written(NamedTuple):
    """A file of the output: its name below the output folder, bytes, rows, split, and its columns with their types."""

    name: str
    bytes: int
    rows: int
    split: str
    columns: str


class _FileWriter(ABC):
    """Writes the rows of one file."""

    rows = 0
    columns = ""

    @abstractmethod
    def add(self, row: Row) -> None:
        """Add a row. Raises BadRecord for a row that the format can't hold; the file is as it was then."""

    def close(self) -> None:  # noqa: B027
        """Finish the file."""


class BlockWriter:
    """The output of one block: a file for each split that has rows. Use it in a `with` block, then call `close`."""

    def __init__(self, root: Path, write: Write, block: int) -> None:
        self._root, self._write, self._block = root, write, block
        self._stack = ExitStack()
        self._writers: dict[str, tuple[Path, _FileWriter]] = {}

    def __enter__(self) -> BlockWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add_all(self, records: list[Record], refuse: Callable[[Record, BadRecord], None]) -> int:
        """Write records, return how many; `refuse` is called with those that the format can't hold."""
        done = 0
        for record in records:
            split = record[2]
            if split not in self._writers:
                self._writers[split] = self._open(split)
            writer = self._writers[split][1]
            try:
                writer.add(record[3])
            except BadRecord as bad:
                refuse(record, bad)
            else:
                writer.rows += 1
                done += 1
        return done

    def close(self) -> list[Written]:
        """Finish all files and put them in their places; return them."""
        for _, writer in self._writers.values():
            writer.close()
        self._stack.close()
        return [
            Written(target.relative_to(self._root).as_posix(), _size(target), writer.rows, split, writer.columns)
            for split, (target, writer) in sorted(self._writers.items())
            if target.exists()
        ]

    def _open(self, split: str) -> tuple[Path, _FileWriter]:
        write, folder = self._write, self._root / split
        name = f"part-{self._block:05d}"
        if write.format in ("wav", "png"):
            target = folder / name
            return target, _MediaWriter(self._stack.enter_context(atomic_folder(target, replace=True)), write.format)
        target = folder / f"{name}.{'txt' if write.format == 'text' else write.format}"
        temporary = self._stack.enter_context(atomic_path(target))
        if write.format == "parquet":
            return target, _ParquetRows(temporary, write)
        if write.format == "csv":
            return target, _CsvRows(temporary, write, self._stack)
        return target, (_TextLines if write.format == "text" else _JsonLines)(temporary, write, self._stack)


def _size(path: Path) -> int:
    return sum(one.stat().st_size for one in path.iterdir()) if path.is_dir() else path.stat().st_size


class _JsonLines(_FileWriter):
    def __init__(self, path: Path, write: Write, stack: ExitStack) -> None:
        self._file = stack.enter_context(open(path, "wb", buffering=_BUFFER))
        self._names = write.columns

    def add(self, row: Row) -> None:
        try:
            line = _encode(chosen(row, self._names) if self._names else row).encode("utf-8")
        except UnicodeEncodeError:
            raise BadRecord("lone surrogate", "half of a surrogate pair in a text") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise BadRecord("not JSON", str(error)[:200]) from None
        self._file.write(line + b"\n")

    def close(self) -> None:
        self._file.close()


class _TextLines(_FileWriter):
    def __init__(self, path: Path, write: Write, stack: ExitStack) -> None:
        self._file = stack.enter_context(open(path, "wb", buffering=_BUFFER))
        self._key = write.key

    def add(self, row: Row) -> None:
        text = row.get(self._key)
        if not isinstance(text, str):
            raise BadRecord(f"no text in the column '{self._key}'", type(text).__name__)
        if "\n" in text or "\r" in text:
            raise BadRecord("a line end in a text", "one line is one row in the format 'text'; write JSON lines")
        try:
            self._file.write(text.encode("utf-8") + b"\n")
        except UnicodeEncodeError:
            raise BadRecord("lone surrogate", "half of a surrogate pair in a text") from None

    def close(self) -> None:
        self._file.close()


class _CsvRows(_FileWriter):
    def __init__(self, path: Path, write: Write, stack: ExitStack) -> None:
        self._file = stack.enter_context(open(path, "w", encoding="utf-8", newline="", buffering=_BUFFER))
        self._names, self._any = write.columns, not write.columns
        self._plain = csv.writer(self._file, lineterminator="\n")
        self._quoted = csv.writer(self._file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        if self._names:
            self._plain.writerow(self._names)
            self.columns = json.dumps(self._names)

    def add(self, row: Row) -> None:
        first = not self._names
        names = _names(row) if first else self._names
        if self._any and len(row) != len(names):
            raise BadRecord("other columns than the rows before", ", ".join(map(str, row))[:200])
        cells = [_cell(value, name) for name, value in chosen(row, names).items()]
        if first:
            self._names, self.columns = names, json.dumps(names)
            self._plain.writerow(names)
        # carriage returns, which the writer does not look for, and nothing at all need quotes
        quoted = any("\r" in cell for cell in cells) or len(cells) == 1
        (self._quoted if quoted else self._plain).writerow(cells)

    def close(self) -> None:
        self._file.close()


def _cell(value: Any, name: str) -> str:
    if value is None:
        return ""
    if type(value) is not str:
        if not isinstance(value, (int, float)):
            raise BadRecord("a value that is no cell", f"column '{name}' holds {type(value).__name__}")
        return repr(value)
    if "\0" in value:
        raise BadRecord("NUL in a text", f"column '{name}'")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise BadRecord("lone surrogate", f"column '{name}'") from None
    return value


class _ParquetRows(_FileWriter):
    def __init__(self, path: Path, write: Write) -> None:
        self._path, self._write = path, write
        self._names, self._any = write.columns, not write.columns
        self._writer = ParquetWriter(path, write.columns, write.types) if write.columns else None

    def add(self, row: Row) -> None:
        if self._writer is None:
            self._names = _names(row)
            self._writer = ParquetWriter(self._path, self._names, ())
        if self._any and len(row) != len(self._names):
            raise BadRecord("other columns than the rows before", ", ".join(map(str, row))[:200])
        values = chosen(row, self._names)
        self._writer.add({name: _arrow_value(value, name) for name, value in values.items()})

    def close(self) -> None:
        if self._writer is not None:
            self.columns = self._writer.close()


def _arrow_value(value: Any, name: str) -> Any:
    if hasattr(value, "tolist"):  # arrays become lists
        return value.tolist()
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise BadRecord("lone surrogate", f"column '{name}'") from None
    return value


class _MediaWriter(_FileWriter):
    """A folder of sounds or images, with the other columns in `rows.jsonl`."""

    def __init__(self, folder: Path, form: str) -> None:
        self._folder, self._form = folder, form
        self._lines = open(folder / "rows.jsonl", "wb", buffering=_BUFFER)

    def add(self, row: Row) -> None:
        import torch

        column = "samples" if self._form == "wav" else "image"
        if column not in row:
            raise BadRecord(f"no column '{column}'", ", ".join(map(str, row))[:200])
        name = f"{self.rows:06d}.{self._form}"
        try:
            line = _encode({**{key: value for key, value in row.items() if key != column}, "path": name})
            data = torch.as_tensor(row[column])
        except (TypeError, ValueError, RecursionError) as error:
            raise BadRecord("a value that can't be written", str(error)[:200]) from None
        if self._form == "wav":
            from deepseek.data.audio.io import write_audio

            if not isinstance(row.get("sample_rate"), int):
                raise BadRecord("no sample_rate", repr(row.get("sample_rate"))[:60])
            _refusing(lambda: write_audio(self._folder / name, data, row["sample_rate"]))
        else:
            from deepseek.data.image.decode import write_image

            _refusing(lambda: write_image(self._folder / name, data))
        self._lines.write(line.encode("utf-8", "backslashreplace") + b"\n")

    def close(self) -> None:
        self._lines.close()


def _refusing(write: Callable[[], None]) -> None:
    """Write a file; what is wrong with the row's values is a bad row."""
    try:
        write()
    except (DataError, ConfigError) as error:
        raise BadRecord(error.problem, "" if error.found is None else str(error.found)[:200]) from None


def _names(row: Row) -> tuple[str, ...]:
    if not row or not all(isinstance(name, str) for name in row):
        raise BadRecord("columns without names", ", ".join(map(str, row))[:200])
    return tuple(row)


def chosen(row: Row, names: Sequence[str]) -> Row:
    """Return the columns `names` of a row, in this order. Raises BadRecord where one is not there."""
    try:
        return {name: row[name] for name in names}
    except KeyError as error:
        raise BadRecord(f"no column {error}", ", ".join(map(str, row))[:200]) from None
