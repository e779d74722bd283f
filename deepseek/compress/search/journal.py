"""The journal of a search: one line of JSON for each candidate that was measured, so that a killed search goes on.

The first line says what was searched (model, data, machine, settings); another subject starts a new journal. A line is
synced to disk before the next candidate begins; what a kill cut short is dropped when it is read again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepseek.files import sha256, storage_errors, write_text
from deepseek.hardware import environment

_MACHINE = ("cpu", "gpu", "torch", "threads")


class Journal:
    """The measured points of one search, in `folder/journal.jsonl`. Raises StorageError when the disk refuses."""

    def __init__(self, folder: Path, subject: Mapping[str, Any]) -> None:
        self.path = folder / "journal.jsonl"
        self.points: dict[str, dict[str, Any]] = {}
        """By the name of the candidate."""
        lines = _whole_lines(self.path)
        self.is_new = not lines or lines[0] != {"subject": dict(subject)}
        kept: list[dict[str, Any]] = [{"subject": dict(subject)}] if self.is_new else lines
        self.points = {line["name"]: line for line in kept[1:] if "name" in line}
        write_text(self.path, "".join(_line(line) for line in kept))

    def add(self, point: Mapping[str, Any]) -> None:
        """Keep a point, on disk when this returns."""
        with storage_errors(self.path), open(self.path, "a", encoding="utf-8", newline="\n") as handle:
            handle.write(_line(point))
            handle.flush()
            os.fsync(handle.fileno())
        self.points[str(point["name"])] = dict(point)

    def __contains__(self, name: object) -> bool:
        return name in self.points


def subject_of(bundle: Path, batches: Iterable[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a search is about: digests of the model and of the validation data, the machine, the settings."""
    files = [bundle] if bundle.is_file() else [bundle / "config.yaml", bundle / "model.safetensors"]
    machine = environment()
    return {
        "model": [sha256(path)[:16] for path in files],
        "data": _digest(batches),
        "machine": {name: machine[name] for name in _MACHINE if name in machine},
        "settings": dict(settings),
    }


def _digest(batches: Iterable[Any]) -> str:
    """Return a digest of the tensors of all batches."""
    digest = hashlib.sha256()
    for batch in batches:
        parts = batch.items() if isinstance(batch, Mapping) else enumerate(batch)
        for key, value in parts:
            if isinstance(value, Tensor):
                digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(finite(value), ensure_ascii=False, allow_nan=False) + "\n"


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines up to the first that is no whole JSON object."""
    if not path.is_file():
        return []
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not isinstance(value, dict):
            break
        found.append(value)
    return found


def finite(value: Any) -> Any:
    """Return the value with numbers that are not finite as null: JSON has no other way."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
