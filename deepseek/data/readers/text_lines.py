"""Plain text, one sample a line, any line in O(1). Not here: whole documents (`deepseek.data.read_documents`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepseek.data.pipeline.stage import Sample
from deepseek.data.readers.rows import MAX_LINE_BYTES, OnError, check_policy, index_lines
from deepseek.data.readers.survey import Survey
from deepseek.data.readers.tree import shown
from deepseek.data.record_forms import BadRecord
from deepseek.data.records import ReadReport
from deepseek.errors import DataError


class TextLines:
    """The lines that are not blank of a UTF-8 text file, or of all text files of a folder: `text`, without line end.

    A byte order mark at the start and CR before LF are left out. A line with NUL bytes, not in UTF-8, or longer than
    `max_line_bytes` is bad: `on_error` "raise" ends with DataError at `file:line`, "skip" counts it in `report`.
    """

    def __init__(self, path: str | Path, *, on_error: OnError = "raise", max_line_bytes: int = MAX_LINE_BYTES) -> None:
        check_policy(on_error, max_line_bytes)
        survey = Survey.of(path)
        names = list(survey.files) if survey.is_file else survey.names("text")
        if not names:
            raise DataError(f"{shown(path)} holds no text", found=survey.summary(), wanted="files such as .txt")
        self.report = ReadReport()
        files = [survey.root / name for name in names]
        self._rows = index_lines(files, _decoded, on_error, max_line_bytes, self.report)

    def __len__(self) -> int:
        return len(self._rows)

    def sizes(self) -> NDArray[np.int64]:
        """Return the bytes of each line."""
        return self._rows.size

    def read(self, index: int) -> Sample:
        """Return `text` and `path` of line `index`. Raises DataError where the file has changed."""
        try:
            return {"text": _decoded(self._rows.read(index)), "path": self._rows.path(index)}
        except BadRecord as bad:
            raise DataError(f"{self._rows.where(index)}: {bad.reason}", found=bad.detail or None) from None


def _decoded(line: bytes) -> str:
    if b"\0" in line:
        raise BadRecord("NUL bytes")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord("not valid UTF-8", f"byte {error.start + 1} of the line") from None
