"""A hub name to a folder: `huggingface_hub` where it is installed, its cache where there is no network."""

from __future__ import annotations

import re
from pathlib import Path

from deepseek.errors import ModelError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_FILES = ["*.json", "model.safetensors", "model-*.safetensors"]


def local_folder(source: str | Path) -> Path:
    """Return the folder that `source` is or, for a hub name ("bert-base-chinese"), the one it was downloaded to.

    Only JSON and safetensors are downloaded. Raises ModelError saying which files go where, if that can't be done.
    """
    folder = Path(source)
    if folder.exists() or isinstance(source, Path) or not _NAME.fullmatch(source):
        if not folder.is_dir():
            raise ModelError(f"{folder} is not a folder", wanted="the folder of a checkpoint, or a name on the hub")
        return folder
    try:
        import huggingface_hub  # optional, and slow to import
    except ModuleNotFoundError:
        raise _by_hand(source, "huggingface_hub is not installed") from None
    try:
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=_FILES))
    except Exception as error:  # its many ways to say: no network, no such name, no permission
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _by_hand(source, first) from error


def _by_hand(name: str, reason: str) -> ModelError:
    return ModelError(
        f"'{name}' is not a folder here and can't be fetched from the hub",
        found=reason,
        wanted="a folder with config.json and model.safetensors (or its shards and model.safetensors.index.json)",
        fix=f"download these files from https://huggingface.co/{name} into a folder and pass its path",
    )
