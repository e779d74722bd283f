"""Reads a checkpoint: everything about it is checked before a tensor is handed out, bytes included.

Files are read and hashed side by side, which brings them into the system's cache; the tensors lie over a mapping of it,
so that nothing is read from the disk twice and nothing is allocated for them. What is wrong is said with the file and
the tensor. Pickle is never read.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from deepseek.checkpoint.commit import MarkedDigest
from deepseek.checkpoint.dtypes import from_bytes
from deepseek.checkpoint.layout import Slot, read_slots
from deepseek.checkpoint.manifest import NAME, PLAIN, Manifest, list_folders, read_json, read_manifest
from deepseek.checkpoint.tree import join_tree
from deepseek.errors import CheckpointError
from deepseek.faults import fault_point
from deepseek.files import sha256

_OLDER = "resume from an older checkpoint"
_THREADS = 3
_PIECE = 1 << 20

logger = logging.getLogger("deepseek.checkpoint")


@dataclass(frozen=True)
class Found:
    """A good checkpoint that was read, and the newer ones that were not good, each with the reason."""

    path: Path
    state: dict[str, Any]
    skipped: list[tuple[Path, str]] = field(default_factory=list)


def find_newest(folder: Path) -> Found | None:
    """Return the newest good checkpoint below `folder`, None where there is none; logs each one it skips and why."""
    skipped: list[tuple[Path, str]] = []
    for path in list_folders(folder):
        try:
            return Found(path, read_checkpoint(path), skipped)
        except CheckpointError as error:
            found = "" if error.found is None else f" (found {error.found}, wanted {error.wanted})"
            skipped.append((path, f"{error.problem}{found}"))
            logger.warning("skipped checkpoint %s: %s", path.name, skipped[-1][1])
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state in the checkpoint folder `path`, of format version 1 or 2, all checksums compared.

    Tensors are on the CPU, over private mappings of the files: writing to them changes no file.
    Raises CheckpointError naming the damaged file, and the tensor where it can be told.
    """
    body = read_json(path / NAME)
    try:
        fault_point("checkpoint.read")
        if body.get("format_version") == 1:
            return _read_version_1(path, body)
        return _read_version_2(path, read_manifest(path))
    except OSError as error:
        raise CheckpointError(f"{error.filename or path} can't be read", found=error.strerror, fix=_OLDER) from error


def _read_version_2(path: Path, manifest: Manifest) -> dict[str, Any]:
    slots = _check_layout(path, manifest)
    with ThreadPoolExecutor(min(_THREADS, len(slots) + 1)) as pool:
        plain = pool.submit(_read_plain, path, manifest)
        parts = list(pool.map(lambda name: _read_file(path, name, manifest, slots[name]), slots))
    tensors = {name: tensor for part in parts for name, tensor in part.items()}
    try:
        tensors |= {name: tensors[same] for name, same in manifest.aliases.items()}
        state: dict[str, Any] = join_tree(plain.result(), tensors)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} holds no tensor named {error}", fix=_OLDER) from None
    return state


def _check_layout(path: Path, manifest: Manifest) -> dict[str, tuple[Slot, ...]]:
    """Return the tensors of each file, after comparing sizes, headers and manifest: all that costs no reading."""
    if PLAIN not in manifest.files:
        raise CheckpointError(f"{path / NAME} names no {PLAIN}", fix=_OLDER)
    expected: dict[str, list[Any]] = {}
    for name, record in manifest.tensors.items():
        expected.setdefault(record.file, []).append(record.spec(name))
    slots = {}
    for name, file in manifest.files.items():
        try:
            size = (path / name).stat().st_size
        except FileNotFoundError:
            raise CheckpointError(f"{path / name} is missing", fix=_OLDER) from None
        if size < file.bytes:
            raise CheckpointError(
                f"{path / name} is damaged: cut short", found=f"{size} bytes", wanted=f"{file.bytes} bytes", fix=_OLDER
            )
        if size > file.bytes:
            raise CheckpointError(f"{path / name} is damaged: {size} bytes, not {file.bytes}", fix=_OLDER)
        if name != PLAIN:
            slots[name] = read_slots(path / name)[1]
            if sorted(slot.spec for slot in slots[name]) != sorted(expected.pop(name, [])):
                raise CheckpointError(f"{path / name} is damaged: its header names other tensors", fix=_OLDER)
    if expected:
        raise CheckpointError(f"{path / NAME} names no file {min(expected)}", fix=_OLDER)
    return slots


def _read_plain(path: Path, manifest: Manifest) -> Any:
    if sha256(path / PLAIN) != manifest.files[PLAIN].sha256:
        raise CheckpointError(f"{path / PLAIN} is damaged: its checksum differs", fix=_OLDER)
    return json.loads((path / PLAIN).read_text(encoding="utf-8"))


def _read_file(path: Path, name: str, manifest: Manifest, slots: tuple[Slot, ...]) -> dict[str, Tensor]:
    """Read a file piece by piece through a small buffer, compare its checksum, and return its tensors, mapped."""
    digest = MarkedDigest((slot.end, slot.spec.name) for slot in slots)
    buffer = memoryview(bytearray(_PIECE))
    with open(path / name, "rb", buffering=0) as handle:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while length := handle.readinto(buffer):
            digest.update(buffer[:length])
        memory = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY))
    if digest.hexdigest() != manifest.files[name].sha256:
        wrong = [
            slot.spec.name for slot in slots if digest.checks[slot.spec.name] != manifest.tensors[slot.spec.name].check
        ]
        where = f"from tensor '{wrong[0]}' on" if wrong else "behind its tensors"
        raise CheckpointError(f"{path / name} is damaged: its checksum differs {where}", fix=_OLDER)
    return {slot.spec.name: from_bytes(memory[slot.begin : slot.end], slot.spec) for slot in slots}


def _read_version_1(path: Path, body: dict[str, Any]) -> dict[str, Any]:
    """Read what releases before format version 2 wrote: one file of tensors, checksums of files alone."""
    sums = body.get("sha256")
    for name in ("state.safetensors", PLAIN):
        if not isinstance(sums, dict) or not (path / name).is_file() or sha256(path / name) != sums.get(name):
            raise CheckpointError(f"{path / name} is damaged: its checksum differs", fix=_OLDER)
    read_slots(path / "state.safetensors")
    try:
        tensors = load_file(path / "state.safetensors")
        state: dict[str, Any] = join_tree(json.loads((path / PLAIN).read_text(encoding="utf-8")), tensors)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} can't be read", found=error, fix=_OLDER) from error
    return state
