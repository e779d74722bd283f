"""Checkpoints on disk: one folder a step, whole or absent, with a checksum for every file.

`step_00000100/` holds `state.safetensors` (tensors), `state.json` (plain values) and `manifest.json` (SHA-256). The
newest good one is resumed from; damaged ones are skipped and named.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from deepseek.checkpoint.tree import join_tree, split_tree
from deepseek.errors import CheckpointError
from deepseek.files import atomic_folder, sha256

logger = logging.getLogger("deepseek.checkpoint")

FORMAT_VERSION = 1


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 3) -> Path:
    """Write `state` as the checkpoint of `step` below `folder`, then remove all but the `keep` newest.

    Raises StorageError when the disk refuses; older checkpoints stay.
    """
    target = folder / f"step_{step:08d}"
    plain, tensors = split_tree(state)
    with atomic_folder(target, replace=True) as temporary:
        save_file(
            {name: tensor.detach().contiguous().cpu() for name, tensor in _unshared(tensors)},
            temporary / "state.safetensors",
        )
        (temporary / "state.json").write_text(json.dumps(plain), encoding="utf-8")
        manifest = {name: sha256(temporary / name) for name in ("state.safetensors", "state.json")}
        text = json.dumps({"format_version": FORMAT_VERSION, "step": step, "sha256": manifest}, indent=2)
        (temporary / "manifest.json").write_text(text, encoding="utf-8")
    for old in list_checkpoints(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the committed checkpoints below `folder`, newest first."""
    return sorted((path for path in folder.glob("step_????????") if path.is_dir()), reverse=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint, checksums compared. Raises CheckpointError naming the damaged file."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        version, sums = manifest["format_version"], dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path} has no readable manifest", fix="resume from an older checkpoint") from None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} is of another format", found=f"version {version}", wanted=f"version {FORMAT_VERSION}"
        )
    for name in ("state.safetensors", "state.json"):
        if not (path / name).is_file() or sha256(path / name) != sums.get(name):
            raise CheckpointError(f"{path / name} is damaged", fix="resume from an older checkpoint")
    try:
        tensors = load_file(path / "state.safetensors")
        state: dict[str, Any] = join_tree(json.loads((path / "state.json").read_text(encoding="utf-8")), tensors)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} can't be read", found=error, fix="resume from an older checkpoint") from error
    return state


def load_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest good checkpoint and its state, or None where there is none; says which it skipped and why."""
    for path in list_checkpoints(folder):
        try:
            return path, load_checkpoint(path)
        except CheckpointError as error:
            logger.warning("skipped checkpoint %s: %s", path.name, error.problem)
    return None


def _unshared(tensors: dict[str, Any]) -> list[tuple[str, Any]]:
    """Copy what shares memory with something before it (tied weights): the format stores each tensor by itself."""
    seen: set[int] = set()
    result = []
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        result.append((name, tensor.clone() if pointer in seen else tensor))
        seen.add(pointer)
    return result
