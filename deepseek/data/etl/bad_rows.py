"""Bad rows of a block: ended at the first one, or kept as JSON lines with file, line, step and reason."""

from __future__ import annotations

import json
from collections.abc import Sequence

from deepseek.data.etl.inputs import InputFile
from deepseek.data.etl.lines import LineNumbers
from deepseek.data.etl.sources import GROUP_BITS
from deepseek.data.readers.tree import shown
from deepseek.data.record_forms import BadRecord
from deepseek.errors import DataError

_EXCERPT = 200


class BadRows:
    """Collects the bad rows of one block. With `skip` false the first one raises DataError."""

    def __init__(self, files: Sequence[InputFile], skip: bool) -> None:
        self._files, self._skip = files, skip
        self._numbers = LineNumbers()
        self.lines: list[str] = []
        self.reasons: dict[str, int] = {}

    def add(self, step: str, file: int, place: int, bad: BadRecord, row: object) -> None:
        """Keep a bad row, or raise DataError."""
        where, line = self._where(file, place)
        excerpt = _excerpt(row)
        if not self._skip:
            raise DataError(
                f"{where}: {bad.reason} (step {step})",
                found=f"{bad.detail or 'this row'}{f' in {excerpt}' if excerpt else ''}",
                fix="correct it, or pass bad_rows='bad.jsonl' to go on and collect such rows there",
            )
        self.reasons[bad.reason] = self.reasons.get(bad.reason, 0) + 1
        entry = {
            "file": shown(self._files[file].path),
            "line": line,
            "where": where,
            "step": step,
            "reason": bad.reason,
            "detail": bad.detail,
            "row": excerpt,
        }
        self.lines.append(json.dumps(entry))

    def _where(self, file: int, place: int) -> tuple[str, int | None]:
        """Return the place of a row for people, and its line in a file of lines."""
        one = self._files[file]
        if one.format in ("jsonl", "text", "csv"):
            try:
                line = self._numbers.at(one.place, place)
            except OSError:
                return f"{shown(one.path)}, byte {place}", None
            return f"{shown(one.path)}:{line}", line
        if one.format == "parquet":
            group, row = place >> GROUP_BITS, place & ((1 << GROUP_BITS) - 1)
            return f"{shown(one.path)}, row group {group}, row {row}", None
        return shown(one.path), None


def _excerpt(row: object) -> str:
    """Return the beginning of a row as text that can be printed."""
    if isinstance(row, bytes):
        return row[:_EXCERPT].decode("utf-8", "backslashreplace")
    if isinstance(row, str):
        return row[:_EXCERPT]
    if isinstance(row, dict):
        parts = [f"{str(key)[:40]}={_value(value)}" for key, value in list(row.items())[:8]]
        return ", ".join(parts)[:_EXCERPT]
    return _value(row)


def _value(value: object) -> str:
    if isinstance(value, (str, bytes)):
        return repr(value[:60])
    return repr(value)[:60] if isinstance(value, (int, float, bool, type(None))) else type(value).__name__
