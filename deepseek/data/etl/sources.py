"""A block of a file to rows, some at a time, in bounded memory. What can't be read is a bad row, not an end.

Not here: how files are cut into blocks (`inputs`), rows that wait between two stages (`spill`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from deepseek.data.etl.csv_rows import csv_rows
from deepseek.data.etl.inputs import FileBlock, InputFile
from deepseek.data.etl.lines import lines_between
from deepseek.data.etl.parquet import read_group
from deepseek.data.etl.rows import Record, Row
from deepseek.data.etl.steps import Read
from deepseek.data.readers.json_line import parse_object
from deepseek.data.record_forms import BadRecord
from deepseek.errors import DataError, DeepSeekError

GROUP_BITS = 40
"""The place of a row of Parquet is its row group, shifted by so many bits, and its number in it."""

_ROWS, _BYTES = 256, 1 << 20
_ENDS = frozenset({"", "\n", "\r\n"})
_KEY_END = re.compile(rb'"[ \t\r]*:')
_plain = json.JSONDecoder(parse_constant=lambda name: _refuse(name))

Refuse = Callable[[int, int, BadRecord, object], None]
"""Called with file, place, what is wrong and an excerpt of the row."""


def read_block(files: Sequence[InputFile], block: FileBlock, read: Read, refuse: Refuse) -> Iterator[list[Record]]:
    """Yield the records of a block, lists of at most 256. Raises DataError where a file is gone, changed or damaged."""
    for number in range(block.file, block.file + block.files):
        file = files[number]
        file.check()
        try:
            if file.format in ("jsonl", "text"):
                yield from _lines(number, file, block, read, refuse)
            elif file.format == "csv":
                yield from _table(number, file, block, read, refuse)
            elif file.format == "parquet":
                place = block.start << GROUP_BITS
                for rows in read_group(file.place, block.start):
                    yield [(number, place + offset, "", row) for offset, row in enumerate(rows)]
                    place += len(rows)
            else:
                yield from _whole_file(number, file, read, refuse)
        except OSError as error:
            if isinstance(error, DeepSeekError):
                raise
            raise DataError(f"can't read {file.path}", found=error.strerror) from None


def _lines(number: int, file: InputFile, block: FileBlock, read: Read, refuse: Refuse) -> Iterator[list[Record]]:
    parse = _json_row if file.format == "jsonl" else _text_row
    held: list[Record] = []
    size = 0
    for place, line in lines_between(file.place, block.start, block.end, read.max_line_bytes):
        try:
            if line is None:
                raise BadRecord("line too long", f"more than {read.max_line_bytes} bytes")
            if line.isspace():
                continue
            held.append((number, place, "", parse(line)))
            size += len(line)
        except BadRecord as bad:
            refuse(number, place, bad, b"" if line is None else line[:400])
        if len(held) >= _ROWS or size >= _BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def _json_row(line: bytes) -> Row:
    """Return the object of a line; most lines are seen to be sound without the checks of `parse_object`."""
    if b"\\u" not in line and b"\0" not in line:
        try:
            text = line.decode()
            row, end = _plain.raw_decode(text)
        except (ValueError, RecursionError, BadRecord):
            return parse_object(line.removesuffix(b"\n").removesuffix(b"\r"))
        # as many ends of keys as keys: none comes twice
        if type(row) is dict and text[end:] in _ENDS and len(_KEY_END.findall(line)) == len(row):
            return row
    return parse_object(line.removesuffix(b"\n").removesuffix(b"\r"))


def _refuse(name: str) -> Any:
    raise BadRecord("not valid JSON", name)


def _text_row(line: bytes) -> Row:
    if b"\0" in line:
        raise BadRecord("NUL bytes")
    try:
        return {"text": line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")}
    except UnicodeDecodeError as error:
        raise BadRecord("not valid UTF-8", f"byte {error.start + 1} of the line") from None


def _table(number: int, file: InputFile, block: FileBlock, read: Read, refuse: Refuse) -> Iterator[list[Record]]:
    held: list[Record] = []
    rows = csv_rows(file.place, block.start, block.end, file.delimiter, read.encoding, read.max_line_bytes)
    header = file.header_in_file and block.start == 0
    for place, cells in rows:
        if header and not isinstance(cells, BadRecord) and cells:
            header = False
            continue
        if isinstance(cells, BadRecord):
            refuse(number, place, cells, "")
        elif len(cells) == len(file.header):
            held.append((number, place, "", dict(zip(file.header, cells, strict=True))))
        elif cells:
            detail = f"{len(cells)}; the table has {len(file.header)} columns"
            refuse(number, place, BadRecord("another number of cells", detail), str(cells[:8]))
        if len(held) >= _ROWS:
            yield held
            held = []
    if held:
        yield held


def _whole_file(number: int, file: InputFile, read: Read, refuse: Refuse) -> Iterator[list[Record]]:
    """Yield the row of a sound or image."""
    try:
        yield [(number, 0, "", _media_row(file, read))]
    except DataError as error:
        found = "" if error.found is None else f": {error.found}"
        refuse(number, 0, BadRecord("can't be decoded", f"{error.problem}{found}"), "")


def _media_row(file: InputFile, read: Read) -> Row:
    if read.load == "path":
        return {"path": file.path}
    if read.load == "bytes":
        return {"path": file.path, "bytes": Path(file.place).read_bytes()}
    if file.format == "audio":
        from deepseek.data.audio.io import read_audio

        waveform, rate = read_audio(file.place, mono=False)
        samples = waveform[0] if len(waveform) == 1 else waveform
        return {"path": file.path, "sample_rate": rate, "samples": samples.numpy()}
    from deepseek.data.image.decode import read_image

    return {"path": file.path, "image": read_image(file.place).contiguous().numpy()}
