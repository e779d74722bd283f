"""Documents out of files: JSON lines, plain text, or a folder of both, one document at a time in bounded memory.

What is wrong with a file or a line is named as `file:line` and handled by policy: raised, or skipped and counted.
Not here: tokens (`tokenizer`, `token_cache`), and any change of the text beyond its line ends.
"""

from __future__ import annotations

import codecs
import io
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, NamedTuple, get_args

from deepseek.data.record_forms import RECORD_FORMS, BadRecord, parse_line, plain_text
from deepseek.data.record_forms import Message as Message
from deepseek.data.sources import binary_format, is_jsonl, list_files, refuse_binary_file
from deepseek.errors import ConfigError, DataError

OnError = Literal["raise", "skip"]

MAX_LINE_BYTES = 32 * 1024 * 1024
PIECE_CHARACTERS = 1 << 20

_BLOCK = 1 << 20
_WORD_END = re.compile(r"(?<=[^\W_])(?=[ \n])")
_log = logging.getLogger(__name__)


class Document(NamedTuple):
    """One document, or one piece of a long text file.

    A chat (also a prompt with its response) has `messages` and an empty `text`. `continues` says that the next
    Document goes on with this text: a text file longer than `PIECE_CHARACTERS` comes in several pieces, cut after
    a word, whose texts joined are the file's. `line` counts from 1 (of a piece: where it starts).
    """

    text: str
    path: str
    line: int
    messages: tuple[Message, ...] | None = None
    continues: bool = False


@dataclass
class ReadReport:
    """What a reader read and what it passed over; filled in as it goes.

    `skipped` counts lines and files given up under `on_error="skip"`, by reason in `reasons`; `examples` are the
    first of their messages. `empty` counts documents of white space alone, `ignored_files` what a folder holds that
    is no text. `bytes_read` is the progress through the files.
    """

    files: int = 0
    documents: int = 0
    characters: int = 0
    skipped: int = 0
    empty: int = 0
    ignored_files: int = 0
    bytes_read: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)


def read_documents(
    source: str | Path,
    *,
    on_error: OnError = "raise",
    max_line_bytes: int = MAX_LINE_BYTES,
    report: ReadReport | None = None,
) -> Iterator[Document]:
    """Read every document of `source`: a `.jsonl` file, a text file (one document), or a folder of such files.

    JSON lines are `{"text"}`, `{"prompt", "response"}` or `{"messages": [{"role", "content"}]}`; other keys are
    ignored, of a repeated key the last counts, blank lines are passed over. Text is UTF-8, with or without BOM;
    in text files CRLF and CR become LF. A folder is read recursively in order of its paths, links followed once,
    hidden files left out. At most `max_line_bytes` of a line are held in memory, a few times over.

    Raises ConfigError for a wrong argument and DataError for a missing or unusable source, both at once; while
    iterating, DataError for a bad line or file under `on_error="raise"` (under "skip" it is counted in `report`), and
    when no document at all was found.
    """
    if on_error not in get_args(OnError):
        raise ConfigError("unknown on_error policy", found=repr(on_error), wanted="'raise' or 'skip'")
    if max_line_bytes < 1:
        raise ConfigError("max_line_bytes is too small", found=max_line_bytes, wanted="at least 1")
    root = Path(source)
    counts = report if report is not None else ReadReport()
    files, counts.ignored_files = list_files(root)
    if files == [root]:
        refuse_binary_file(root)
    return _read_files(root, files, on_error, max_line_bytes, counts)


def cut_point(text: str, start: int, limit: int) -> int:
    """Return where to end a piece of `text` that begins at `start` and may have `limit` characters.

    The cut is after a word (before a space or line end), where the tokenizer's pattern cuts too, so the pieces give
    the tokens of the whole. Only text with no such place in the last 4096 characters is cut at the limit itself.
    """
    end = start + limit
    if len(text) <= end:
        return len(text)
    places = [match.start() for match in _WORD_END.finditer(text, max(start + 1, end - 4096), end)]
    return places[-1] if places else end


def _read_files(
    root: Path, files: list[Path], on_error: OnError, max_line: int, report: ReadReport
) -> Iterator[Document]:
    done = 0
    for path in files:
        report.files += 1
        try:
            with open(path, "rb") as handle:
                if is_jsonl(path):
                    yield from _read_jsonl(path, handle, on_error, max_line, report)
                else:
                    yield from _read_text(path, handle, on_error, report)
            done += path.stat().st_size
        except (OSError, UnicodeDecodeError) as error:  # the second: the file changed after it was checked
            _reject(str(path), BadRecord("can't be read", str(error)), on_error, report)
        report.bytes_read = done
    if report.skipped:
        _log.warning("%s: skipped %d records (%s)", root, report.skipped, _summary(report.reasons))
    if report.documents == 0:
        raise DataError(
            f"{root} holds no document",
            found=_summary(report.reasons) if report.reasons else "only empty records" if report.empty else "nothing",
            wanted=f"text, or JSON lines such as {RECORD_FORMS}",
        )


def _summary(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))


def _reject(where: str, bad: BadRecord, on_error: OnError, report: ReadReport) -> None:
    message = f"{where}: {bad.reason}" + (f": {bad.detail}" if bad.detail else "")
    if on_error == "raise":
        raise DataError(message, fix="correct it, or pass on_error='skip' to go on without such records")
    report.skipped += 1
    report.reasons[bad.reason] = report.reasons.get(bad.reason, 0) + 1
    if len(report.examples) < 5:
        report.examples.append(message)


def _read_jsonl(
    path: Path, handle: IO[bytes], on_error: OnError, max_line: int, report: ReadReport
) -> Iterator[Document]:
    start = handle.read(8)
    form = binary_format(start)
    if form is not None:
        _reject(str(path), BadRecord("not plain text", form), on_error, report)
        return
    handle.seek(3 if start.startswith(codecs.BOM_UTF8) else 0)
    before, number, name = report.bytes_read, 0, str(path)
    for block in _line_blocks(handle, max_line):
        report.bytes_read = before + handle.tell()
        documents: list[Document] = []
        for line, text in _lines(block):
            number += 1
            try:
                document = _document(line, text, name, number, max_line, report)
            except BadRecord as bad:
                if on_error == "raise":
                    yield from _counted(documents, report)
                _reject(f"{path}:{number}", bad, on_error, report)
                continue
            if document is not None:
                documents.append(document)
        yield from _counted(documents, report)


def _line_blocks(handle: IO[bytes], max_line: int) -> Iterator[bytes]:
    """Yield the rest of a file as whole lines, about a mebibyte of them at a time.

    Of a line that is too long only its first `max_line + 1` bytes come, in a block of their own.
    """
    held = b""
    while block := handle.read(_BLOCK):
        held = held + block if held else block
        end = held.rfind(b"\n") + 1
        if end:
            yield held[:end]
            held = held[end:]
        if len(held) > max_line:
            yield held[: max_line + 1]
            held = _after_line(handle)
    if held:
        yield held


def _after_line(handle: IO[bytes]) -> bytes:
    """Read on to the end of a line; return what was read of the next ones."""
    while block := handle.read(_BLOCK):
        end = block.find(b"\n") + 1
        if end:
            return block[end:]
    return b""


def _lines(block: bytes) -> Iterator[tuple[bytes, str | None]]:
    """Yield each line without its end, and its text; None where the block must be looked at line by line."""
    lines = block.removesuffix(b"\n").split(b"\n")
    try:
        texts = None if b"\0" in block else block.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        texts = None
    return zip(lines, texts, strict=True) if texts is not None else ((line, None) for line in lines)


def _document(
    line: bytes, text: str | None, name: str, number: int, max_line: int, report: ReadReport
) -> Document | None:
    """Return the document of a line, None for a blank one. Raises BadRecord."""
    if len(line) > max_line:
        raise BadRecord("line too long", f"more than {max_line} bytes")
    content = plain_text(text) if text is not None else None
    messages = None
    if content is None:
        if not line.strip():
            return None
        content, messages = parse_line(line)
    if messages is None and (not content or content.isspace()):
        report.empty += 1
        return None
    return Document(content, name, number, messages)


def _counted(documents: list[Document], report: ReadReport) -> list[Document]:
    report.documents += len(documents)
    for document in documents:
        report.characters += len(document.text)
        if document.messages:
            report.characters += sum(len(message.content) for message in document.messages)
    return documents


def _read_text(path: Path, handle: IO[bytes], on_error: OnError, report: ReadReport) -> Iterator[Document]:
    try:
        blank = _check_text(handle)
    except BadRecord as bad:
        _reject(str(path) if bad.line is None else f"{path}:{bad.line}", bad, on_error, report)
        return
    if blank:
        report.empty += 1
        return
    report.documents += 1
    before, line, held = report.bytes_read, 1, ""
    handle.seek(0)
    with io.TextIOWrapper(handle, encoding="utf-8-sig", newline=None) as text:
        while True:
            block = text.read(PIECE_CHARACTERS - len(held))
            held += block
            if not block or len(held) < PIECE_CHARACTERS:
                break
            # one character is kept back, so that the last piece is never empty
            cut = cut_point(held, 0, PIECE_CHARACTERS - 1)
            report.characters += cut
            report.bytes_read = before + handle.tell()
            yield Document(held[:cut], str(path), line, continues=True)
            line += held.count("\n", 0, cut)
            held = held[cut:]
    report.characters += len(held)
    yield Document(held, str(path), line)


def _check_text(handle: IO[bytes]) -> bool:
    """Read a text file once, in blocks; return whether it is all white space. Raises BadRecord."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line, blank, first = 1, True, True
    while True:
        block = handle.read(_BLOCK)
        if first and (form := binary_format(block)):
            raise BadRecord("not plain text", form)
        first = False
        if b"\0" in block:
            raise BadRecord("NUL bytes: binary data")
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            line += block.count(b"\n", 0, max(0, error.start))
            raise BadRecord("not valid UTF-8", line=line) from None
        blank = blank and not text.strip()
        line += block.count(b"\n")
        if not block:
            return blank
