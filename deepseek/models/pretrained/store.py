"""A folder of the Hugging Face layout: `config.json` and safetensors, in one file or in shards with an index.

Only plain data is read: JSON and safetensors. Pickled weights are refused (`convert` turns them into safetensors).
Not here: what the weights mean (`translate`, the families).
"""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.files import atomic_folder

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt")
_WEIGHT_FILE = re.compile(r"model(-[0-9]+-of-[0-9]+)?\.safetensors(\.index\.json)?")
_MAX_JSON_BYTES = 64 << 20
_WINDOW_BYTES = 16 << 20  # a file is mapped anew after so much reading, and what was read of it is given back
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Checkpoint:
    """The weights in a folder by their names; nothing but headers is read before `read`.

    Raises ModelError for a folder without weights, with pickled ones alone, or with a damaged or unsafe file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = _read_config(folder)
        self._file_of: dict[str, Path] = {}
        self._header: dict[str, tuple[tuple[int, ...], str]] = {}
        for path, wanted in _weight_files(folder).items():
            self._read_header(path, wanted)
        self._open: tuple[Path, Any] | None = None
        self._read_bytes = 0

    @property
    def names(self) -> set[str]:
        """The names of all weights."""
        return set(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the tensor `name`, from the file's header."""
        return self._header[name][0]

    def main_dtype(self) -> torch.dtype:
        """Return the number format in which most of the weights are stored (of the floating ones)."""
        counts: Counter[torch.dtype] = Counter()
        for shape, kind in self._header.values():
            if kind in _DTYPES and _DTYPES[kind].is_floating_point:
                counts[_DTYPES[kind]] += math.prod(shape)
        return counts.most_common(1)[0][0] if counts else torch.float32

    def read(self, name: str) -> Tensor:
        """Return the tensor `name` on the CPU, in the memory of the mapped file: to be copied, and then let go.

        Raises ModelError where it can't be read.
        """
        kind = self._header[name][1]
        if kind not in _DTYPES:
            raise ModelError(
                f"'{name}' is stored in a number format that can't be read",
                found=kind,
                wanted=" or ".join(_DTYPES),
                fix="take a checkpoint of plain weights (bfloat16 or float32)",
            )
        path = self._file_of[name]
        if self._open is None or self._open[0] != path or self._read_bytes > _WINDOW_BYTES:
            self._open, self._read_bytes = None, 0
            self._open = (path, _opened(path))
        try:
            tensor: Tensor = self._open[1].get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise _damaged(path, error) from error
        self._read_bytes += tensor.nbytes
        return tensor

    def close(self) -> None:
        """Let go of the file that is open."""
        self._open = None

    def _read_header(self, path: Path, wanted: set[str] | None) -> None:
        file = _opened(path)
        found = set(file.keys())
        lacking = sorted((wanted or set()) - found)
        if lacking:
            raise ModelError(
                f"{path} lacks weights that {INDEX} says it holds", found=listed(lacking), fix="download both again"
            )
        for name in found if wanted is None else wanted:
            part = file.get_slice(name)
            self._file_of[name] = path
            self._header[name] = (tuple(part.get_shape()), part.get_dtype())


def listed(names: Sequence[str], limit: int = 12) -> str:
    """Return names one after the other, the first `limit` of many."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def read_index(path: Path, suffix: str = ".safetensors") -> dict[str, str]:
    """Return name -> file name of an index file. Raises ModelError for one that is no index or points elsewhere."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise ModelError(f"{path} is not an index of weights", wanted='{"weight_map": {NAME: FILE, ...}}')
    for file in sorted(set(weight_map.values())):
        if not file.endswith(suffix) or file.startswith(".") or re.search(r"[/\\:\x00]", file):
            raise ModelError(
                f"{path} points outside its folder or at no weights",
                found=repr(file),
                wanted=f"the plain name of a {suffix} file in the same folder",
                fix="don't use this checkpoint: it may be made to harm",
            )
    return weight_map


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ModelError for anything else."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} can't be read", found=_first_line(error), wanted="a JSON object") from error
    return content


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        entries = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        raise ModelError(
            f"{folder} is not a checkpoint of the Hugging Face layout",
            found=f"{CONFIG} is missing among {listed(entries) or 'no files'}",
            wanted=f"a folder with {CONFIG} and {SINGLE} (or shards with {INDEX})",
            fix="a bundle written by ds.save is read by ds.load" if "config.yaml" in entries else None,
        )
    return read_json(folder / CONFIG)


def _weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """Return the files of weights with the names to take from each, None for all. Raises ModelError without any."""
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: None}
    if (folder / INDEX).is_file():
        files: dict[Path, set[str] | None] = {}
        for name, file in read_index(folder / INDEX).items():
            names = files.setdefault(folder / file, set())
            if names is not None:
                names.add(name)
        missing = sorted(path.name for path in files if not path.is_file())
        if missing:
            raise ModelError(f"{folder} lacks shards that {INDEX} names", found=listed(missing), fix="download them")
        return files
    pickled = sorted({path.name for pattern in PICKLED for path in folder.glob(pattern)})
    if pickled:
        raise ModelError(
            f"{folder} has pickled weights alone; they can hold code and are never opened here",
            found=listed(pickled),
            wanted=f"{SINGLE}, or shards with {INDEX}",
            fix=f"python -m deepseek.models.pretrained.convert {shlex.quote(str(folder))}",
        )
    raise ModelError(f"{folder} has no weights", wanted=f"{SINGLE}, or shards with {INDEX}", fix="put them there")


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{path} can't be read: cut short, damaged or not safetensors",
        found=_first_line(error),
        fix="download or save it again",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@dataclass(frozen=True)
class Stored:
    """One tensor to write: its name, its size in bytes, and how to get it (when its shard is written)."""

    name: str
    nbytes: int
    tensor: Callable[[], Tensor]


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Sequence[Stored], max_shard_bytes: int) -> None:
    """Write a checkpoint, whole or not at all. Other files of a checkpoint that is there (a tokenizer) stay.

    Raises ModelError for a folder that holds something else, StorageError when the disk refuses.
    """
    folder = folder.resolve()
    if folder.exists() and not _replaceable(folder):
        raise ModelError(f"{folder} exists and is not a checkpoint", fix="choose another path or remove it first")
    with atomic_folder(folder, replace=True) as temporary:
        if folder.exists():
            shutil.copytree(folder, temporary, symlinks=True, ignore=_weights_among, dirs_exist_ok=True)
        text = json.dumps(dict(config), indent=2, ensure_ascii=False, allow_nan=False)
        (temporary / CONFIG).write_text(text + "\n", encoding="utf-8")
        _write_shards(temporary, _shards(tensors, max_shard_bytes))


def _replaceable(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        return "model_type" in read_json(folder / CONFIG)
    except ModelError:
        return False


def _weights_among(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == CONFIG or _WEIGHT_FILE.fullmatch(name)]


def _shards(tensors: Sequence[Stored], limit: int) -> list[list[Stored]]:
    """Return the tensors in order, cut into groups of at most `limit` bytes (a larger tensor is alone)."""
    shards: list[list[Stored]] = [[]]
    size = 0
    for stored in tensors:
        if shards[-1] and size + stored.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(stored)
        size += stored.nbytes
    return shards


def _write_shards(folder: Path, shards: Sequence[Sequence[Stored]]) -> None:
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        state = {stored.name: stored.tensor() for stored in shard}
        save_file(state, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(state, file))
    if len(shards) > 1:
        total = sum(stored.nbytes for shard in shards for stored in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
