"""What `choose_runtime` found: the winner, the whole table, and the machine it was measured on; as `runtime.json`.

Not here: measuring it (`chosen.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from deepseek.errors import ExportError
from deepseek.evaluate.latency import Latency
from deepseek.export.quality import Deviation, Figure
from deepseek.export.runtimes.opening import open_runtime
from deepseek.export.runtimes.runtime import Precision, Runtime, Settings

FORMAT_VERSION = 1

Status = Literal["chosen", "kept", "refused", "not run"]


class Row(NamedTuple):
    """One runtime in one precision. What was not measured is None."""

    runtime: str
    precision: Precision
    status: Status = "not run"
    reason: str = ""
    """Why it was refused or did not run."""
    file: str | None = None
    """What it runs, relative to the bundle; None for the bundle's own weights."""
    settings: Settings = Settings()
    latency: Latency | None = None
    speedup: float | None = None
    """Over the bundle in eager PyTorch, from runs in turn."""
    bytes: int | None = None
    deviation: Deviation | None = None
    figure: Figure | None = None
    on_front: bool = False
    """No other accepted row is as fast, as small and as good."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON has them."""
        plain = self._asdict() | {"settings": self.settings.to_dict()}
        for name in ("latency", "deviation", "figure"):
            plain[name] = None if plain[name] is None else finite(plain[name]._asdict())
        return plain

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what `to_dict` made. Raises TypeError, KeyError or ValueError for anything else."""
        parts: dict[str, Any] = {"settings": Settings.from_dict(values["settings"])}
        for name, kind in (("latency", Latency), ("deviation", Deviation), ("figure", Figure)):
            stored = values[name]
            read = stored and {key: float("inf") if value == "inf" else value for key, value in stored.items()}
            parts[name] = None if read is None else kind(**read)
        return cls(**(values | parts))


class Choice(NamedTuple):
    """The runtime to use for a bundle on this machine."""

    winner: Row
    rows: tuple[Row, ...]
    shapes: dict[str, list[int]]
    """The inputs that were timed."""
    machine: dict[str, Any]
    files: dict[str, int]
    """The bundle's weights and exported files, with their bytes."""
    complete: bool
    """False where time ran out before everything was tried."""
    remeasured: tuple[str, ...] = ()
    """What had changed since an earlier choice, if it was measured anew."""

    def open(self, bundle_path: str | Path) -> Runtime:
        """Return the winner, ready to run, with its settings. Raises ExportError or BundleError where it can't."""
        source = Path(bundle_path) if self.winner.file is None else Path(bundle_path) / self.winner.file
        return open_runtime(self.winner.runtime, source, precision=self.winner.precision, settings=self.winner.settings)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON has them."""
        return {
            "format_version": FORMAT_VERSION,
            "winner": self.winner.to_dict(),
            "rows": [row.to_dict() for row in self.rows],
            "shapes": self.shapes,
            "machine": self.machine,
            "files": self.files,
            "complete": self.complete,
        }

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read `runtime.json`. Raises ExportError for a missing or damaged file."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format_version"] != FORMAT_VERSION:
                raise ValueError(f"version {values['format_version']}")
            rows = tuple(Row.from_dict(row) for row in values["rows"])
            keys = ("shapes", "machine", "files", "complete")
            return cls(Row.from_dict(values["winner"]), rows, *(values[key] for key in keys))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ExportError(
                f"{path} can't be read as a choice of runtime",
                found=f"{type(error).__name__}: {error}",
                fix="measure again with deepseek.export.choose_runtime",
            ) from error


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with an infinite number as the text `inf`: JSON has none."""
    return {key: "inf" if isinstance(value, float) and math.isinf(value) else value for key, value in values.items()}


def with_front(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return the rows with those marked that no accepted row beats in time, bytes and closeness at once."""
    good = [row for row in rows if row.status in ("chosen", "kept")]
    return tuple(row._replace(on_front=row in good and not any(_beats(other, row) for other in good)) for row in rows)


def _beats(one: Row, other: Row) -> bool:
    """Return whether `one` is as good as `other` in everything and better in something."""
    costs = [(_costs(one)[index], _costs(other)[index]) for index in range(3)]
    return all(mine <= theirs for mine, theirs in costs) and any(mine < theirs for mine, theirs in costs)


def _costs(row: Row) -> tuple[float, float, float]:
    """Return what should be small: time relative to eager, bytes, and how far the answers are off."""
    if row.figure is not None:
        worse = -row.figure.value if row.figure.is_share else row.figure.value
    else:
        worse = -round(min(row.deviation.snr_db, 60.0)) if row.deviation is not None else 0.0
    return (1 / (row.speedup or 1.0), float(row.bytes or 0), float(worse))
