"""The input as blocks of raw lines, each with the place where the next begins: so a run goes on at once where it was.

Lines are parsed where the rules run, in the workers. What is a text file is one document (in pieces, where it is very
long), as `read_documents` has it. Not here: what a line may hold (`draft`).
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from deepseek.data.records import MAX_LINE_BYTES, read_documents
from deepseek.data.sources import binary_format, is_jsonl, list_files, refuse_binary_file
from deepseek.errors import DataError

_BLOCK_BYTES = 4 << 20
_READ = 1 << 20


class RawLine(NamedTuple):
    """A line of JSON and where it is from; `bad` says why a line or file could not be read."""

    path: str
    line: int
    data: bytes
    bad: str | None = None


@dataclass(frozen=True)
class Position:
    """Where reading goes on: the file's number, in it the byte (of text: the piece) and line, and bytes so far."""

    file: int = 0
    place: int = 0
    line: int = 0
    done: int = 0

    def to_dict(self) -> dict[str, int]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Position:
        """Return the position of `to_dict`."""
        return cls(**{name: int(value) for name, value in values.items()})


class Block(NamedTuple):
    """Lines that are worked on together, and where the next block begins."""

    lines: list[RawLine]
    next: Position


class Source:
    """The files of an input: one file, or a folder of them. Raises DataError where there is nothing to read."""

    def __init__(self, path: str | Path) -> None:
        self.root = Path(path)
        self.files, self.ignored = list_files(self.root)
        if self.files == [self.root]:
            refuse_binary_file(self.root)
        self.sizes = [file.stat().st_size for file in self.files]
        self.bytes = sum(self.sizes)

    def identity(self) -> list[list[Any]]:
        """Return names, sizes and times of the files: what must be unchanged for a run to go on."""
        return [[str(file), size, file.stat().st_mtime_ns] for file, size in zip(self.files, self.sizes, strict=True)]

    def blocks(self, start: Position, documents: int) -> Iterator[Block]:
        """Yield the blocks from `start` on: `documents` lines each, or fewer where they are long."""
        held: list[RawLine] = []
        size = 0
        last = start
        for raw, position in self._lines(start):
            held.append(raw)
            size += len(raw.data)
            last = position
            if len(held) >= documents or size >= _BLOCK_BYTES:
                yield Block(held, last)
                held, size = [], 0
        if held:
            yield Block(held, last)

    def _lines(self, start: Position) -> Iterator[tuple[RawLine, Position]]:
        for number in range(start.file, len(self.files)):
            path, before = self.files[number], sum(self.sizes[:number])
            first = start if number == start.file else Position(number, 0, 0, before)
            jsonl = is_jsonl(path)
            for raw, place in _json_lines(path, first) if jsonl else _text_pieces(path, first):
                yield raw, Position(number, place, raw.line, before + (place if jsonl else 0))


def _json_lines(path: Path, start: Position) -> Iterator[tuple[RawLine, int]]:
    """Yield each line that is not blank, with the byte behind it."""
    try:
        with open(path, "rb") as handle:
            head = handle.read(8)
            if form := binary_format(head):
                yield RawLine(str(path), 1, b"", f"not plain text: {form}"), path.stat().st_size
                return
            handle.seek(start.place or (3 if head.startswith(codecs.BOM_UTF8) else 0))
            number, bad = start.line, None
            while line := handle.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                    while (rest := handle.readline(_READ)) and not rest.endswith(b"\n"):
                        pass
                    line, bad = b"", f"line too long: more than {MAX_LINE_BYTES} bytes"
                if bad or line.strip():
                    yield RawLine(str(path), number, line, bad), handle.tell()
                bad = None
    except OSError as error:
        raise DataError(f"can't read {path}", found=error.strerror, fix="check the disk and the permissions") from None


def _text_pieces(path: Path, start: Position) -> Iterator[tuple[RawLine, int]]:
    """Yield the pieces of a text file as lines of JSON, with how many there were so far."""
    try:
        for number, piece in enumerate(islice(read_documents(path), start.place, None), start.place + 1):
            yield RawLine(str(path), piece.line, json.dumps({"text": piece.text}).encode()), number
    except DataError as error:
        if start.place == 0:
            yield RawLine(str(path), 1, b"", error.problem.split("\n")[0]), 1
