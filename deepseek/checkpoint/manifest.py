"""The manifest of a checkpoint: what belongs to it, with checksums; written last, read first.

`manifest.json` names each file with its bytes and SHA-256, each tensor with its file, dtype, shape and the SHA-256 of
its file up to its end (so that of a damaged file the first wrong tensor can be named), tied tensors as aliases, the
metrics of that step and the versions of the libraries. Its last entry is the checksum of all others.
Free of torch: the writer process imports it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deepseek.checkpoint.layout import TensorSpec
from deepseek.errors import CheckpointError

FORMAT_VERSION = 2
NAME, PLAIN = "manifest.json", "state.json"
CHECK_DIGITS = 16

_FILE = re.compile(r"state(-\d{5,9}-of-\d{5,9})?\.safetensors|state\.json")
_STEP = re.compile(r"step_(\d{8,18})")
_SIZE_LIMIT = 256 << 20
_OLDER = "resume from an older checkpoint"


@dataclass(frozen=True)
class FileRecord:
    """Bytes and SHA-256 (hexadecimal) of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class TensorRecord:
    """Where a tensor is, what it is, and the first digits of the SHA-256 of its file from the start to its end."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    check: str = ""

    def spec(self, name: str) -> TensorSpec:
        """Return it as the format describes it."""
        return TensorSpec(name, self.dtype, self.shape)


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says."""

    step: int
    tensors: dict[str, TensorRecord]
    aliases: dict[str, str] = field(default_factory=dict)
    """Names of tied tensors, and the name each is stored under."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    """Finite numbers; None for NaN and infinities, which JSON lacks."""
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    files: dict[str, FileRecord] = field(default_factory=dict)

    def text(self) -> str:
        """Return the content of `manifest.json`."""
        body = {"format_version": FORMAT_VERSION, **asdict(self)}
        return json.dumps({**body, "checksum": _checksum(body)}, indent=1, allow_nan=False) + "\n"


def finite_metrics(metrics: dict[str, float] | None) -> dict[str, float | None]:
    """Return metrics as a manifest holds them."""
    return {name: float(value) if math.isfinite(value) else None for name, value in (metrics or {}).items()}


def folder_name(step: int) -> str:
    """Return the name of the folder of a step."""
    return f"step_{step:08d}"


def step_of(path: Path) -> int | None:
    """Return the step that a folder's name tells, None for other folders."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def list_folders(folder: Path) -> list[Path]:
    """Return the committed checkpoints below `folder`, newest first."""
    found = [(step, path) for path in folder.glob("step_*") if (step := step_of(path)) is not None and path.is_dir()]
    return [path for _, path in sorted(found, reverse=True)]


def read_json(path: Path) -> dict[str, Any]:
    """Return the table in a manifest of any version. Raises CheckpointError when there is none to read."""
    try:
        if path.stat().st_size > _SIZE_LIMIT:
            raise CheckpointError(f"{path} is too large", found=path.stat().st_size, fix=_OLDER)
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path.parent} has no readable manifest", fix=_OLDER)
    return found


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of the checkpoint folder `path` (version 2), its own checksum compared.

    Raises CheckpointError for a manifest that is missing, damaged or of another version.
    """
    body = read_json(path / NAME)
    version = body.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} is of another format version",
            found=f"version {version}",
            wanted=f"version {FORMAT_VERSION} or older",
            fix="resume with the version of this library that wrote it",
        )
    checksum = body.pop("checksum", None)
    if checksum != _checksum({"format_version": version, **body}):
        raise CheckpointError(f"{path / NAME} is damaged: its checksum differs", fix=_OLDER)
    try:
        return Manifest(
            step=int(body["step"]),
            tensors={name: _tensor(record) for name, record in body["tensors"].items()},
            aliases={str(name): str(body["aliases"][name]) for name in body["aliases"]},
            metrics=dict(body["metrics"]),
            versions=dict(body["versions"]),
            created=str(body["created"]),
            files={name: _file(name, record) for name, record in body["files"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path / NAME} is not a manifest", found=error, fix=_OLDER) from None


def _tensor(record: Any) -> TensorRecord:
    return TensorRecord(str(record["file"]), str(record["dtype"]), tuple(record["shape"]), str(record["check"]))


def _file(name: str, record: Any) -> FileRecord:
    if not _FILE.fullmatch(name) or type(record["bytes"]) is not int:
        raise ValueError(f"a file '{name[:80]}' of {record['bytes']} bytes")
    return FileRecord(record["bytes"], str(record["sha256"]))


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()
