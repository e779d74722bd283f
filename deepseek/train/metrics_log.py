"""Metrics on disk: `metrics.jsonl`, and TensorBoard events beside it."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepseek.errors import MissingExtraError
from deepseek.files import storage_errors, write_text
from deepseek.lazy import require

logger = logging.getLogger("deepseek.train")


class MetricsLog:
    """Appends one JSON object a line; numbers that are not finite are written as null.

    With `from_step`, lines of later steps (of a run that went further than its checkpoint) are dropped first. A disk
    that refuses a line is a warning, once: training matters more than its log.
    """

    def __init__(self, folder: Path, *, tensorboard: bool, from_step: int) -> None:
        self.path = folder / "metrics.jsonl"
        self._drop_after(from_step)
        with storage_errors(self.path):
            self._file = open(self.path, "a", encoding="utf-8", buffering=1)
        self._writer = _tensorboard_writer(folder / "tensorboard", from_step) if tensorboard else None
        self._refused = False

    def log(self, values: dict[str, float], step: int) -> None:
        """Write `values` as of `step`."""
        row = {"step": step, **{name: value if math.isfinite(value) else None for name, value in values.items()}}
        with self._warn_once():
            self._file.write(json.dumps(row) + "\n")
        if self._writer is not None:
            with self._warn_once():
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is buffered."""
        with self._warn_once():
            self._file.close()
        if self._writer is not None:
            with self._warn_once():
                self._writer.close()

    @contextlib.contextmanager
    def _warn_once(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._refused:
                self._refused = True
                logger.warning("%s is not complete: %s", self.path, error.strerror)

    def _drop_after(self, from_step: int) -> None:
        if not self.path.is_file():
            return
        kept = [
            line
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            if _step_of(line) <= from_step
        ]
        write_text(self.path, "".join(line + "\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by a kill


def _tensorboard_writer(folder: Path, from_step: int) -> Any:
    try:
        require("tensorboard", "tensorboard")
    except MissingExtraError as error:
        logger.info("no TensorBoard events: %s", error.fix)
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=from_step + 1 if from_step else None)
