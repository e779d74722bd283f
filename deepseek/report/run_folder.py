"""What a run folder holds, read with tolerance: a report must also come out of a run that was killed half way.

Reads results.json, metrics.jsonl and recipe.yaml. What is absent or damaged is left out and noted for the page;
only a folder with none of the three is an error. Not here: anything about how it looks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepseek.errors import DataError
from deepseek.files import storage_errors

MAX_RECIPE_CHARACTERS = 200_000


class Section(Mapping[str, Any]):
    """A JSON object whose values are asked for by type; a value that is absent or of another type reads as None."""

    def __init__(self, values: object = None) -> None:
        self._values: dict[str, Any] = values if isinstance(values, dict) else {}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def number(self, key: str) -> float | None:
        """Return a finite number."""
        return finite(self._values.get(key))

    def text(self, key: str) -> str | None:
        """Return text that is not blank."""
        value = self._values.get(key)
        return value if isinstance(value, str) and value.strip() else None

    def section(self, key: str) -> Section:
        """Return the object at `key`, empty where there is none."""
        return Section(self._values.get(key))

    def sections(self, key: str) -> list[Section]:
        """Return the objects of the list at `key`, leaving out what is not an object."""
        values = self._values.get(key)
        return [Section(value) for value in values if isinstance(value, dict)] if isinstance(values, list) else []


@dataclass(frozen=True)
class Note:
    """Something a reader of the page should know about the data behind it."""

    english: str
    chinese: str


@dataclass
class Run:
    """A run folder's content. `train` and `validation` are metrics lines in order of their steps."""

    folder: Path
    results: Section = field(default_factory=Section)
    train: list[Section] = field(default_factory=list)
    validation: list[Section] = field(default_factory=list)
    recipe: str | None = None
    notes: list[Note] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run's name: as its results say, else the folder's."""
        return self.results.text("name") or self.folder.resolve().name

    def note(self, english: str, chinese: str) -> None:
        """Add a note for the page."""
        self.notes.append(Note(english, chinese))


def finite(value: object) -> float | None:
    """Return `value` as a float if it is a finite number (not a bool), else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def read_run(folder: str | Path) -> Run:
    """Read a run folder. Raises DataError where it is not one, StorageError where the disk refuses."""
    path = Path(folder)
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing there"
        raise DataError(f"{path} is not a run folder", found=found, fix="give the folder that `deepseek run` left")
    run = Run(path)
    present = [_read_results(run), _read_metrics(run), _read_recipe(run)]
    if not any(present):
        raise DataError(
            f"{path} is not a run folder",
            found="none of results.json, metrics.jsonl, recipe.yaml",
            fix="give the folder that `deepseek run` left",
        )
    return run


def _read_bytes(path: Path) -> bytes | None:
    if not path.is_file():
        return None
    with storage_errors(path):
        return path.read_bytes()


def _read_results(run: Run) -> bool:
    data = _read_bytes(run.folder / "results.json")
    if data is None:
        run.note("results.json is not there: this run has not finished.", "没有 results.json：此次运行尚未结束。")
        return False
    value = _json(data)
    if not isinstance(value, dict):
        run.note("results.json is damaged and was left out.", "results.json 已损坏，未采用。")
    run.results = Section(value)
    return True


def _read_metrics(run: Run) -> bool:
    data = _read_bytes(run.folder / "metrics.jsonl")
    if data is None:
        run.note("metrics.jsonl is not there: no curves.", "没有 metrics.jsonl：无曲线。")
        return False
    damaged: list[int] = []
    rewound = 0
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        value = Section(_json(line))
        if value.number("step") is None:
            damaged.append(number)
        elif "val_loss" in value:
            rewound += _append(run.validation, value)
        else:
            rewound += _append(run.train, value)
    if damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", …" if len(damaged) > 5 else "")
        run.note(
            f"metrics.jsonl: left out {len(damaged)} damaged {'line' if len(damaged) == 1 else 'lines'} ({shown}).",
            f"metrics.jsonl：{len(damaged)} 行已损坏，未采用（第 {shown} 行）。",
        )
    if rewound:
        run.note(
            "The run was resumed; the steps it walked a second time are drawn once.",
            "此次运行曾中断后继续；重复走过的步只画一次。",
        )
    return True


def _append(series: list[Section], value: Section) -> bool:
    """Append a line; a resumed run's first line removes what an earlier attempt wrote from its step on."""
    step = value.number("step") or 0.0
    rewound = False
    while series and (series[-1].number("step") or 0.0) >= step:
        series.pop()
        rewound = True
    series.append(value)
    return rewound


def _read_recipe(run: Run) -> bool:
    data = _read_bytes(run.folder / "recipe.yaml")
    if data is None:
        return False
    text = data.decode("utf-8-sig", errors="replace")
    if len(text) > MAX_RECIPE_CHARACTERS:
        run.note("recipe.yaml is long; its beginning is shown.", "recipe.yaml 过长，只显示开头。")
        text = text[:MAX_RECIPE_CHARACTERS]
    run.recipe = text.strip("\n") or None
    return True


def _json(data: bytes) -> object:
    """Return the value, or None where the bytes are not JSON (cut short, not UTF-8, nested without end)."""
    try:
        value: object = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return value
