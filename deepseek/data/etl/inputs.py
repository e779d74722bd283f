"""The files of a plan and the blocks they are cut into: the same for the same files, whatever runs them.

Lines are cut at about every `block_bytes`; CSV with quotes between whole rows, since cells may hold line ends; Parquet
at its row groups; sounds and images are gathered to blocks. Not here: reading a block (`sources`).
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from deepseek.data.etl.csv_rows import csv_rows, has_quotes
from deepseek.data.etl.parquet import row_groups
from deepseek.data.etl.steps import InputFormat, Read
from deepseek.data.readers.content import kind_of
from deepseek.data.readers.table_header import find_header
from deepseek.data.readers.tree import existing, list_tree, shown
from deepseek.errors import ConfigError, DataError

_KINDS: dict[str, InputFormat] = {
    "jsonl": "jsonl",
    "kdconv": "jsonl",
    "text": "text",
    "csv": "csv",
    "parquet": "parquet",
    "audio": "audio",
    "image": "image",
}
_SUFFIXES: dict[str, InputFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".wav": "audio",
    ".flac": "audio",
    ".ogg": "audio",
    ".png": "image",
    ".jpg": "image",
    ".jpeg": "image",
}
_MOST_FILES = 256


@dataclass(frozen=True)
class InputFile:
    """A file as it was when the plan was made, `place` its absolute path; `header` and `delimiter` of a table."""

    path: str
    place: str
    size: int
    mtime_ns: int
    format: InputFormat
    header: tuple[str, ...] = ()
    header_in_file: bool = False
    delimiter: str = ","

    def check(self) -> None:
        """Raise DataError where the file is gone or is not what it was."""
        try:
            status = os.stat(self.place)
        except OSError as error:
            raise DataError(f"can't read {shown(self.path)}", found=error.strerror) from None
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
            raise DataError(
                f"{shown(self.path)} has changed during the run",
                found=f"{status.st_size} bytes",
                wanted=f"{self.size} bytes, untouched",
                fix="run again with resume=False",
            )


class FileBlock(NamedTuple):
    """A part of the input: bytes (of Parquet: row groups) `start` to `end` of `file`, or `files` whole files."""

    file: int
    start: int
    end: int
    files: int = 1


def find_files(read: Read) -> list[InputFile]:
    """Return the files of a plan in order. Raises DataError where there are none or one can't be used."""
    found: dict[str, None] = {}
    for pattern in read.paths:
        for path in _matches(pattern):
            found.setdefault(path)
    files = [_looked_at(path, read) for path in found]
    if read.format is None and len({one.format for one in files}) > 1:
        other = next(one for one in files if one.format != files[0].format)
        raise DataError(
            "the files to read are of several formats",
            found=f"{shown(files[0].path)} is {files[0].format}, {shown(other.path)} is {other.format}",
            fix="read them in plans of their own, or pass format=",
        )
    return files


def _matches(pattern: str) -> Iterator[str]:
    """Yield the files of a path or pattern, sorted."""
    if not os.path.lexists(pattern) and glob.has_magic(pattern):
        paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
        if not paths:
            raise DataError(f"no file matches {shown(pattern)}", found="nothing", fix="check the folder and the suffix")
        yield from paths
        return
    root = existing(pattern)
    if not root.is_dir():
        yield str(root)
        return
    names = list_tree(root)
    if not len(names):
        raise DataError(f"the folder {shown(root)} is empty", wanted="files to read")
    yield from (str(root / name) for name in names)


def _looked_at(path: str, read: Read) -> InputFile:
    place = os.path.abspath(path)
    try:
        status = os.stat(path)
        form = read.format or _format_of(Path(path))
        if not os.path.isfile(path):
            raise ConfigError("only plain files can be read in blocks", found=shown(path), wanted="a file on a disk")
        if form == "csv" and status.st_size:
            header = find_header(Path(path), read.header, None, read.delimiter, read.encoding)
            names = (header.names, header.in_file, header.delimiter)
            return InputFile(path, place, status.st_size, status.st_mtime_ns, form, *names)
        return InputFile(path, place, status.st_size, status.st_mtime_ns, form)
    except OSError as error:
        raise DataError(f"can't read {shown(path)}", found=error.strerror) from None


def _format_of(path: Path) -> InputFormat:
    """Return the format by content; names decide only between kinds of plain text, and for empty files."""
    kind = kind_of(path)
    suffix = _SUFFIXES.get(path.suffix.lower())
    form = suffix if suffix in ("jsonl", "text", "csv") and kind in _TEXT_KINDS else _KINDS.get(kind)
    if form is None and kind == "empty":
        form = suffix
    if form is None:
        raise DataError(
            f"{shown(path)} can't be read here",
            found=kind,
            wanted="JSON lines, CSV, Parquet, text, sounds or images",
            fix="leave it out, or pass format= if it is one of these",
        )
    return form


_TEXT_KINDS = frozenset({"jsonl", "kdconv", "text", "csv", "json", "coco", "binary", "empty"})


def cut(files: Sequence[InputFile], read: Read) -> list[FileBlock]:
    """Return the blocks of the files, in order. Raises DataError where a file can't be read."""
    blocks: list[FileBlock] = []
    waiting: list[int] = []
    held = 0
    for number, file in enumerate(files):
        if file.format in ("audio", "image"):
            waiting.append(number)
            held += file.size
            if held >= read.block_bytes or len(waiting) >= _MOST_FILES:
                blocks.append(FileBlock(waiting[0], 0, 0, len(waiting)))
                waiting, held = [], 0
        elif file.format == "parquet":
            blocks += [FileBlock(number, group, group + 1) for group in range(row_groups(file.path))]
        else:
            bounds = _bounds(file, read)
            blocks += [FileBlock(number, first, last) for first, last in zip(bounds, bounds[1:], strict=False)]
    if waiting:
        blocks.append(FileBlock(waiting[0], 0, 0, len(waiting)))
    return blocks


def _bounds(file: InputFile, read: Read) -> list[int]:
    """Return the bytes at which the blocks of a file of lines begin, and its size.

    A line belongs to the block in which its first byte lies, so bounds need not be at the ends of lines.
    """
    if file.size == 0:
        return []
    bounds = list(range(0, file.size, read.block_bytes))
    if file.format == "csv" and len(bounds) > 1 and has_quotes(file.path):
        cuts = [0]
        for start, _ in csv_rows(file.path, 0, file.size, file.delimiter, read.encoding, read.max_line_bytes):
            if start >= cuts[-1] + read.block_bytes:
                cuts.append(start)
        bounds = cuts
    return [*bounds, file.size]
