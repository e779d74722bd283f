"""A run's folder: the recipe as it was run, and the numbers of each stage as they come in."""

from __future__ import annotations

import contextlib
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deepseek.config import Config
from deepseek.errors import DataError
from deepseek.files import write_json, write_text
from deepseek.hardware import environment


class RunFolder:
    """`recipe.yaml` and `results.json` in `path`; other files belong to the stages that write them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, Any] = {}
        stored = path / "results.json"
        if stored.is_file():
            try:
                self.results = json.loads(stored.read_text(encoding="utf-8"))
            except ValueError as error:
                raise DataError(f"{stored} is damaged", found=error, fix="remove it and run the stage again") from None

    @property
    def bundle(self) -> Path:
        """The trained model."""
        return self.path / "bundle"

    @property
    def compressed(self) -> Path:
        """The compressed model."""
        return self.path / "bundle-int8"

    @property
    def onnx(self) -> Path:
        """The exported model."""
        return self.bundle / "exports" / "model.onnx"

    def start(self, name: str, recipe: Config) -> None:
        """Write the recipe and an empty set of results."""
        self.keep_recipe(recipe)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        self.results = {"name": name, "created": created, "environment": environment()}
        self._write()

    def keep_recipe(self, recipe: Config) -> None:
        """Write the recipe with every default."""
        write_text(self.path / "recipe.yaml", recipe.to_yaml())

    def forget(self, *sections: str) -> None:
        """Drop the numbers of stages that are done anew."""
        self.results = {name: values for name, values in self.results.items() if name not in sections}
        self._write()

    def record(self, section: str, values: Any) -> None:
        """Keep the numbers of a stage, and write them."""
        self.results[section] = values
        self._write()

    def last_metrics(self, name: str) -> dict[str, Any]:
        """Return the last line of metrics.jsonl that has `name`; empty where there is none."""
        with contextlib.suppress(OSError, ValueError):
            lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            rows = (json.loads(line) for line in reversed(lines))
            return next((row for row in rows if name in row), {})
        return {}

    def _write(self) -> None:
        write_json(self.path / "results.json", _finite(self.results))


def _finite(value: Any) -> Any:
    """Return the value with numbers that are not finite as null: JSON has no other way."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
