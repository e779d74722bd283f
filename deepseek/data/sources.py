"""Which files a data source is made of, and which of them can't be text.

Not here: reading them (`records`).
"""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path

from deepseek.errors import DataError

JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
TEXT_SUFFIXES = frozenset({".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".html", ".py", ".c", ".h", ".cpp"})

_BINARY_FORMATS = {
    b"\x1f\x8b": "gzip data",
    b"PK\x03\x04": "a zip archive",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"\x28\xb5\x2f\xfd": "zstandard data",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


def source_files(source: str | Path) -> list[Path]:
    """Return the files that `read_documents` would read, in its order. Raises DataError when there is none."""
    return list_files(Path(source))[0]


def is_jsonl(path: Path) -> bool:
    """Return whether `path` is read as JSON lines, by its suffix."""
    return path.suffix.lower() in JSONL_SUFFIXES


def list_files(root: Path) -> tuple[list[Path], int]:
    """Return the text files that make up `root`, sorted, and the number of other files there. Raises DataError."""
    try:
        mode = root.stat().st_mode
    except OSError as error:
        raise DataError(f"can't read {root}", found=error.strerror, fix="check the path; it may be mistyped") from None
    if stat.S_ISREG(mode):
        return [root], 0
    if not stat.S_ISDIR(mode):
        raise DataError(
            f"{root} is neither a file nor a folder", wanted="a .jsonl file, a text file or a folder of them"
        )
    files: list[Path] = []
    ignored: list[Path] = []
    for path in _walk(root):
        (files if _looks_like_text(path) else ignored).append(path)
    if not files:
        suffixes = ", ".join(sorted({path.suffix or path.name for path in ignored})[:8])
        raise DataError(
            f"the folder {root} holds no text",
            found=f"{len(ignored)} other files ({suffixes})" if ignored else "no files",
            wanted="files such as .jsonl, .txt or .md",
        )
    return files, len(ignored)


def _walk(root: Path) -> list[Path]:
    """Return all regular files below `root`, sorted; a folder reached again through a link is not entered again."""
    seen: set[tuple[int, int]] = set()
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        raise DataError(f"can't read the folder {error.filename}", found=error.strerror) from None

    for folder, names, files in os.walk(root, followlinks=True, onerror=refuse):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:
            names.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        names[:] = sorted(name for name in names if not name.startswith("."))
        found += [
            Path(folder, name) for name in files if not name.startswith(".") and os.path.isfile(f"{folder}/{name}")
        ]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _looks_like_text(path: Path) -> bool:
    if path.suffix.lower() in JSONL_SUFFIXES | TEXT_SUFFIXES:
        return True
    try:
        with open(path, "rb") as handle:
            start = handle.read(8192)
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except (OSError, UnicodeDecodeError):
        return False
    return bool(start) and b"\0" not in start and binary_format(start) is None


def binary_format(start: bytes) -> str | None:
    """Return what a file is by its first bytes, if it is one of the formats taken for text by mistake."""
    return next((name for magic, name in _BINARY_FORMATS.items() if start.startswith(magic)), None)


def refuse_binary_file(path: Path) -> None:
    """Raise DataError when a file is empty, compressed or binary, or can't be read."""
    try:
        with open(path, "rb") as handle:
            start = handle.read(8192)
    except OSError as error:
        raise DataError(f"can't read {path}", found=error.strerror, fix="check the file's permissions") from None
    if not start:
        raise DataError(f"{path} is empty", wanted="at least one document")
    form = binary_format(start)
    if form is None and b"\0" in start and not is_jsonl(path):
        form = "binary data"
    if form is not None:
        raise DataError(
            f"{path} is not plain text",
            found=form,
            wanted="UTF-8 text or JSON lines",
            fix="unpack or convert it first" if form != "binary data" else "choose a text file",
        )
