"""Documents as token ids in memory-mapped files, worked out once and reused while nothing has changed.

A cache is a folder `FOLDER/KEY16/` with `tokens.bin`, `offsets.bin`, for chats `loss.bin`, and `meta.json`. Its key
is a hash of the content of the source, the tokenizer and the options, so a changed file or tokenizer gives another
cache. It is written whole or not at all, and its checksums are verified when it is opened. Not here: splits and
sequences (`packing`).
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

import deepseek.files as files
from deepseek.data.records import MAX_LINE_BYTES, Document, OnError, ReadReport, read_documents
from deepseek.data.sources import is_jsonl, source_files
from deepseek.data.tokenizer import Tokenizer
from deepseek.errors import DataError, StorageError

FORMAT_VERSION = 1
_BATCH_CHARACTERS = 1 << 20
_HASHES = "hashes.json"
_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class TokenCache:
    """The token ids of all documents, one after the other.

    `tokens`: (num_tokens,) uint16 or uint32; each document ends with the tokenizer's `eos_id`.
    `offsets`: (num_documents + 1,) int64; document i is `tokens[offsets[i]:offsets[i + 1]]`.
    `loss_mask`: (num_tokens,) uint8, 1 where a token is to be learned; None where all are.
    `report` says what was read and what was skipped.
    """

    tokens: NDArray[np.uint16] | NDArray[np.uint32]
    offsets: NDArray[np.int64]
    vocab_size: int
    loss_mask: NDArray[np.uint8] | None = None
    report: ReadReport = field(default_factory=ReadReport)
    path: Path | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents together."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """Documents."""
        return len(self.offsets) - 1

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Map the cache in the folder `path`, after checking sizes and checksums. Raises DataError."""
        path = Path(path)
        try:
            meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
            if meta["format_version"] != FORMAT_VERSION:
                raise DataError(
                    f"the token cache {path} has another format version",
                    found=meta["format_version"],
                    wanted=FORMAT_VERSION,
                    fix="remove it; it is built again",
                )
            for name, expected in meta["sha256"].items():
                if files.sha256(path / name) != expected:
                    raise ValueError(f"{name} was changed")
            tokens = _map(path / "tokens.bin", np.dtype(meta["dtype"]), meta["num_tokens"])
            offsets = np.fromfile(path / "offsets.bin", dtype="<i8")
            mask = _map(path / "loss.bin", np.dtype(np.uint8), meta["num_tokens"]) if meta["has_loss_mask"] else None
            report = ReadReport(**meta["report"])
            return cls(tokens, offsets, int(meta["vocab_size"]), mask, report, path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"the token cache {path} is damaged", found=str(error), fix="build it again") from None


def build_token_cache(
    source: str | Path,
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    on_error: OnError = "raise",
    max_line_bytes: int = MAX_LINE_BYTES,
    progress: Progress | None = None,
) -> TokenCache:
    """Tokenize `source` (see `read_documents`) into a folder below `folder`, or open what is there already.

    Every document ends with <|endoftext|>. In chats only what the assistant says and its <|end|> is to be learned.
    `progress(done_bytes, total_bytes)` is called about once a mebibyte. A damaged cache is built again. Processes
    that want the same cache at the same time wait for the first.

    Raises DataError for the source, and StorageError when the folder can't be written; then no part of a cache is left.
    """
    folder = Path(folder)
    paths = source_files(source)
    stamps = [_stamp(path) for path in paths]
    key = _key(folder, paths, tokenizer, {"on_error": on_error, "max_line_bytes": max_line_bytes})
    target = folder / key[:16]
    cache = _usable(target)
    if cache is not None:
        return cache
    try:
        with _build_lock(folder):
            cache = _usable(target)
            if cache is None:
                files.sweep_temporaries(folder)
                report = ReadReport()
                documents = read_documents(source, on_error=on_error, max_line_bytes=max_line_bytes, report=report)
                total = sum(stamp[0] for stamp in stamps)
                with files.atomic_folder(target, replace=True) as temporary:
                    _write(temporary, documents, tokenizer, report, total, progress)
                    if [_stamp(path) for path in paths] != stamps:
                        raise DataError(f"{source} was changed while it was read", fix="run again when it is complete")
                cache = TokenCache.open(target)
    except StorageError:
        cache = _usable(target)  # another process, where files can't be locked, was first
        if cache is None:
            raise
    return cache


def _usable(target: Path) -> TokenCache | None:
    if not target.exists():
        return None
    try:
        return TokenCache.open(target)
    except DataError as error:
        _log.warning("%s: building it again", error.problem)
        return None


def _map(path: Path, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    if path.stat().st_size != count * dtype.itemsize:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes instead of {count * dtype.itemsize}")
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(count,)))


def _stamp(path: Path) -> list[int]:
    """Return what changes when a file is written, replaced or touched."""
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"can't read {path}", found=error.strerror) from None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _key(folder: Path, paths: list[Path], tokenizer: Tokenizer, options: dict[str, Any]) -> str:
    """Return the key of the cache: a hash of what the files hold (not of their names), tokenizer and options."""
    known = _read_hashes(folder / _HASHES)
    contents = []
    changed = False
    for path in paths:
        stamp, name = _stamp(path), str(path.resolve())
        if known.get(name, [])[:-1] != stamp:
            changed = True
            try:
                known[name] = [*stamp, files.sha256(path)]
            except OSError as error:
                if options["on_error"] == "raise":
                    raise DataError(f"can't read {path}", found=error.strerror) from None
                known[name] = [*stamp, "unreadable"]
        contents.append([is_jsonl(path), known[name][-1]])
    if changed:
        # a file written in this moment may change again without a new time stamp: not remembered
        settled = time.time_ns() - 2_000_000_000
        kept = {name: entry for name, entry in known.items() if max(entry[1:3]) < settled}
        with contextlib.suppress(OSError):
            files.write_json(folder / _HASHES, kept)
    everything = {"format": FORMAT_VERSION, "contents": contents, "tokenizer": tokenizer.sha256, **options}
    return hashlib.sha256(json.dumps(everything).encode()).hexdigest()


def _read_hashes(path: Path) -> dict[str, list[Any]]:
    """Return the hashes found earlier: absolute path -> [size, mtime, ctime, inode, SHA-256]."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {
        name: entry
        for name, entry in (found.items() if isinstance(found, dict) else ())
        if isinstance(entry, list) and len(entry) == 5 and all(isinstance(value, int) for value in entry[:4])
    }


@contextlib.contextmanager
def _build_lock(folder: Path) -> Iterator[None]:
    """Wait for other builders in `folder`, where the system can lock files; elsewhere the first to finish wins."""
    with files.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / ".build.lock", "ab")
    with handle:
        if sys.platform != "win32":
            import fcntl

            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _write(
    folder: Path,
    documents: Iterator[Document],
    tokenizer: Tokenizer,
    report: ReadReport,
    total_bytes: int,
    progress: Progress | None,
) -> None:
    with _Writer(folder, tokenizer) as writer:
        for batch in _batches(documents):
            writer.add(batch)
            if progress is not None:
                progress(min(report.bytes_read, total_bytes), total_bytes)
    if progress is not None:
        progress(total_bytes, total_bytes)
    (folder / "offsets.bin").write_bytes(np.array(writer.offsets, dtype="<i8").tobytes())
    names = ["tokens.bin", "offsets.bin"] + (["loss.bin"] if writer.has_loss_mask else [])
    meta = {
        "format_version": FORMAT_VERSION,
        "dtype": writer.dtype.str,
        "num_tokens": writer.offsets[-1],
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "tokenizer_sha256": tokenizer.sha256,
        "has_loss_mask": writer.has_loss_mask,
        "sha256": {name: files.sha256(folder / name) for name in names},
        "report": dataclasses.asdict(report),
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2), encoding="utf-8")


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += 64 + len(document.text)
        if document.messages:
            size += sum(len(message.content) for message in document.messages)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Writer:
    """Appends documents to `tokens.bin` and, from the first chat on, `loss.bin`; keeps their offsets."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self.offsets = array.array("q", [0])
        self._folder = folder
        self._tokenizer = tokenizer
        self._written = 0
        self._tokens: IO[bytes] = open(folder / "tokens.bin", "wb")
        self._loss: IO[bytes] | None = None

    @property
    def has_loss_mask(self) -> bool:
        return self._loss is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tokens.close()
        if self._loss is not None:
            self._loss.close()

    def add(self, documents: list[Document]) -> None:
        plain = iter(self._tokenizer.encode_batch([item.text for item in documents if item.messages is None]))
        chats = iter(self._tokenizer.encode_chats([item.messages for item in documents if item.messages is not None]))
        ids: list[int] = []
        unlearned: list[tuple[int, list[bool]]] = []
        start, eos_id = self._written, self._tokenizer.eos_id
        for document in documents:
            if document.messages is None:
                ids += next(plain)
                if document.continues:
                    continue
                ids.append(eos_id)
            else:
                chat, learned = next(chats)
                unlearned.append((len(ids), [*learned, False]))
                ids += [*chat, eos_id]
            self.offsets.append(start + len(ids))
        if unlearned or self._loss is not None:
            self._add_loss(len(ids), unlearned)
        self._tokens.write(np.array(ids, dtype=self.dtype).tobytes())  # tofile would not say that the disk is full
        self._written += len(ids)

    def _add_loss(self, count: int, chats: list[tuple[int, list[bool]]]) -> None:
        if self._loss is None:
            self._loss = open(self._folder / "loss.bin", "wb")
            for begin in range(0, self._written, 1 << 20):
                self._loss.write(b"\1" * min(1 << 20, self._written - begin))
        mask = np.ones(count, dtype=np.uint8)
        for begin, learned in chats:
            mask[begin : begin + len(learned)] = learned
        self._loss.write(mask.tobytes())
