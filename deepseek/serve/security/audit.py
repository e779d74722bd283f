"""The audit log: one JSON object a line for every request, who asked what of which model and how it ended.

Prompts and answers are not in it, unless `log_prompts`. Lines are written by a thread of their own, so a slow or full
disk never holds a request up: what can't be written is dropped, counted and told in the log. Files are rotated by
size: `audit.jsonl`, `audit.jsonl.1` (newer) ... Not here: metrics.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepseek.errors import ConfigError

_LOG = logging.getLogger("deepseek.serve")
_WAITING = 10_000
_PROMPT_CHARACTERS = 65_536
FIELDS = ("model", "version", "tokens_in", "tokens_out")
"""What adapters leave in a request's `state` for the audit log, and `prompt`, which is written only when asked for."""


class AuditLog:
    """Appends to `path`; begins a new file at `max_bytes` and keeps `keep` old ones."""

    def __init__(
        self, path: str | Path, *, max_bytes: int = 64 << 20, keep: int = 5, log_prompts: bool = False
    ) -> None:
        """Open the file (made readable by its owner only). Raises ConfigError where that can't be done."""
        self.path = Path(path)
        self.log_prompts = log_prompts
        self.dropped = 0
        """Lines that could not be written."""
        self._max_bytes, self._keep = max_bytes, keep
        self._file: int | None = None
        self._size = 0
        try:
            self._open()
        except OSError as error:
            raise ConfigError(
                f"the audit log {self.path} can't be written", found=error, fix="choose a folder that is there"
            ) from None
        self._lines: queue.Queue[bytes | None] = queue.Queue(_WAITING)
        self._told = 0.0
        self._thread = threading.Thread(target=self._write_all, name="deepseek-audit", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, Any]) -> None:
        """Take a line; returns at once. A `prompt` in it is written only with `log_prompts`, whoever left it there."""
        if "prompt" in record:
            prompt = {"prompt": str(record["prompt"])[:_PROMPT_CHARACTERS]} if self.log_prompts else {}
            record = {**{name: value for name, value in record.items() if name != "prompt"}, **prompt}
        line = json.dumps({"time": round(time.time(), 3), **record}, ensure_ascii=True, default=str).encode() + b"\n"
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what waits, for at most 5 s, and close the file."""
        try:
            self._lines.put(None, timeout=5)
        except queue.Full:
            return
        self._thread.join(5)

    def _write_all(self) -> None:
        ending = False
        while not ending:
            lines = [self._lines.get()]
            while not self._lines.empty() and len(lines) < 256:
                lines.append(self._lines.get())
            ending = None in lines
            self._append([line for line in lines if line is not None])
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _append(self, lines: list[bytes]) -> None:
        block = b"".join(lines)
        if not block:
            return
        try:
            if self._file is None:
                self._open()
            if self._size and self._size + len(block) > self._max_bytes:
                self._rotate()
            self._write(block)
        except OSError as error:
            self.dropped += len(lines)
            if time.monotonic() - self._told > 60:
                self._told = time.monotonic()
                _LOG.error("the audit log can't be written, %d lines are lost: %s", self.dropped, error)

    def _write(self, block: bytes) -> None:
        """Write the block whole, or leave the file as it was: half a line would spoil the next one."""
        file = self._file
        if file is None:
            raise OSError("the file is closed")
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError:
            os.ftruncate(file, self._size)
            raise
        self._size += len(block)

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o600)
        self._size = os.fstat(self._file).st_size

    def _rotate(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        for number in range(self._keep, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            newer = self.path if number == 1 else self.path.with_name(f"{self.path.name}.{number - 1}")
            if newer.exists():
                newer.replace(older)
        if self._keep == 0:
            self.path.unlink(missing_ok=True)
        self._open()
