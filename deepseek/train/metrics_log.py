"""Metrics on disk: `metrics.jsonl`, and TensorBoard events beside it; any other log of one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepseek.errors import MissingExtraError
from deepseek.files import storage_errors, write_text
from deepseek.lazy import require

logger = logging.getLogger("deepseek.train")


class MetricsLog:
    """Numbers by step in `folder/metrics.jsonl` and, where TensorBoard is installed, in `folder/tensorboard`.

    Numbers that are not finite are written as null. `from_step`: see `JsonLines`.
    """

    def __init__(self, folder: Path, *, tensorboard: bool, from_step: int) -> None:
        self._lines = JsonLines(folder / "metrics.jsonl", from_step)
        self.path = self._lines.path
        self._writer = tensorboard_writer(folder / "tensorboard", from_step) if tensorboard else None
        self._warning = WarnOnce(folder / "tensorboard")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write `values` as of `step`."""
        self._lines.write({"step": step, **{name: number_or_none(value) for name, value in values.items()}})
        if self._writer is not None:
            with self._warning:
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is buffered."""
        self._lines.close()
        if self._writer is not None:
            with self._warning:
                self._writer.close()


class JsonLines:
    """Appends one JSON object with a `step` a line.

    With `from_step`, lines of later steps (of a run that went further than its checkpoint), and one cut short by a
    kill, are dropped first. A disk that refuses a line is a warning, once: training matters more than its log.
    """

    def __init__(self, path: Path, from_step: int) -> None:
        self.path = path
        _drop_after(path, from_step)
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a", encoding="utf-8", buffering=1)
        self._warning = WarnOnce(path)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append `row`; it is with the system when this returns."""
        line = json.dumps(row, ensure_ascii=False) + "\n"
        with self._warning:
            self._file.write(line)

    def close(self) -> None:
        """Close the file."""
        with self._warning:
            self._file.close()


class WarnOnce(contextlib.AbstractContextManager[None]):
    """Turns what the disk refuses inside its block into a warning about `path`, the first time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._refused = False

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, OSError):
            return False
        if not self._refused:
            self._refused = True
            logger.warning("%s is not complete: %s", self.path, error.strerror or error)
        return True


def number_or_none(value: float) -> float | None:
    """Return `value`, or None where it is not finite: JSON has no word for that."""
    return value if math.isfinite(value) else None


def tensorboard_writer(folder: Path, from_step: int) -> Any:
    """Return a SummaryWriter that goes on after `from_step`, or None (said in the log) without TensorBoard."""
    try:
        require("tensorboard", "tensorboard")
    except MissingExtraError as error:
        logger.info("no TensorBoard events: %s", error.fix)
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=from_step + 1 if from_step else None)


def _drop_after(path: Path, from_step: int) -> None:
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= from_step]
    if len(kept) < len(lines):
        write_text(path, "".join(kept))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by a kill
