"""The run's numbers as a table that spreadsheets read (RFC 4180)."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import IO, TYPE_CHECKING

from deepseek.errors import ConfigError
from deepseek.files import storage_errors, write_text
from deepseek.train.callbacks.callback import Callback
from deepseek.train.metrics_log import WarnOnce

if TYPE_CHECKING:
    from deepseek.train.run_state import RunState

_COLUMNS = ("step", "epoch", "items", "seconds", "loss", "grad_norm", "learning_rate")


class CSV(Callback):
    """Writes a row every `every` steps, and one after each validation with its numbers in columns of their own.

    To `path`, by default `metrics.csv` in the run's folder. A resumed run cuts the rows of later steps and goes on.
    Where the disk refuses, a warning says once that the file is not complete.
    Raises ConfigError for `every` below 1, a run without a folder and path, or a file at `path` that is not of a run.
    """

    def __init__(self, path: str | Path | None = None, every: int = 10) -> None:
        if every < 1:
            raise ConfigError("CSV's every is wrong", found=every, wanted="at least 1 step")
        self.path = Path(path) if path is not None else None
        self.every = every
        self._columns: list[str] = []
        self._file: IO[str] | None = None
        self._warning = WarnOnce(Path("metrics.csv"))

    def on_train_begin(self, state: RunState) -> None:
        path = self._target(state)
        self._warning = WarnOnce(path)
        rows = _read(path)
        self._columns = list(rows[0]) if rows and state.step else list(_COLUMNS)
        kept = [row for row in rows if _step_of(row) <= state.step] if state.step else []
        with storage_errors(path):
            write_text(path, _table(self._columns, kept))
            self._file = open(path, "a", encoding="utf-8", newline="", buffering=1)

    def on_step_end(self, state: RunState) -> None:
        if state.step % self.every == 0 or state.step == state.total_steps:
            self._write(_row(state))

    def on_validation_end(self, state: RunState) -> None:
        row = {"step": state.step, "epoch": state.epoch, "items": state.items, "seconds": state.seconds}
        self._write({**row, **state.metrics}, state)

    def close(self) -> None:
        if self._file is not None:
            with self._warning:
                self._file.close()
            self._file = None

    def _target(self, state: RunState) -> Path:
        if self.path is not None:
            return self.path
        if state.output_dir is None:
            raise ConfigError("CSV has nowhere to write", fix="CSV('metrics.csv'), or give the trainer output_dir")
        return state.output_dir / "metrics.csv"

    def _write(self, row: dict[str, float], state: RunState | None = None) -> None:
        if self._file is None:
            return
        with self._warning:
            new = [name for name in row if name not in self._columns]
            if new and state is not None:
                self._widen(new, self._target(state))
            csv.DictWriter(self._file, self._columns, lineterminator="\n").writerow(row)

    def _widen(self, new: list[str], path: Path) -> None:
        """Write the table anew with more columns; happens at the first validation."""
        self._columns += new
        if self._file is not None:
            self._file.close()
        write_text(path, _table(self._columns, _read(path)))
        self._file = open(path, "a", encoding="utf-8", newline="", buffering=1)


def _row(state: RunState) -> dict[str, float]:
    return {name: getattr(state, name) for name in _COLUMNS}


def _read(path: Path) -> list[dict[str, str]]:
    """Return the rows of an earlier run's table; one that a kill cut short is left out."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", errors="replace", newline="") as handle:
        text = handle.read()
    whole = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(whole))
    header = list(reader.fieldnames or ())
    if text.strip() and header[: len(_COLUMNS)] != list(_COLUMNS):
        raise ConfigError(
            f"{path} is no table of a run", found=text[:60].splitlines()[0], fix="choose another path, or remove it"
        )
    return [row for row in reader if None not in row and None not in row.values()]


def _step_of(row: dict[str, str]) -> float:
    try:
        return float(row["step"])
    except ValueError:
        return float("inf")


def _table(columns: list[str], rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
