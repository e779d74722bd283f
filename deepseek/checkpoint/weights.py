"""Weights alone in one safetensors file, written whole or not at all; other programs read it too.

Tied weights are stored once, and the file's metadata says which names share them. Not here: what else a run needs to go
on (`training_state.py`); whole models with config and tokenizer (`deepseek.bundle`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deepseek.checkpoint.dtypes import spec_of
from deepseek.checkpoint.layout import read_slots
from deepseek.checkpoint.sharded import gathered, is_writer
from deepseek.checkpoint.snapshot import take_apart
from deepseek.checkpoint.training_state import restore_model
from deepseek.errors import CheckpointError
from deepseek.files import atomic_path

_TIED = "tied"


def save_weights(weights: nn.Module | Mapping[str, Any], path: str | Path, **metadata: str) -> Path:
    """Write a model, or its `state_dict`, to `path` (.safetensors) with text in its metadata; return the path.

    Sharded weights become whole: every rank calls, rank 0 writes. Raises StorageError when the disk refuses (a file
    that was there stays), CheckpointError for weights that the format can't hold.
    """
    path = Path(path)
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    contents = take_apart({name: value for name, value in state.items() if isinstance(value, Tensor)})
    for name, tensor in contents.tensors.items():
        spec_of(name, tensor)
    tensors = gathered(contents.tensors)
    if is_writer():
        notes = {"format": "pt", **metadata, _TIED: json.dumps(contents.aliases)}
        own = {name: tensor.detach().contiguous() for name, tensor in _apart(tensors).items()}
        with atomic_path(path) as temporary:
            save_file(own, temporary, metadata=notes)
    return path


def load_weights(model: nn.Module, path: str | Path) -> dict[str, str]:
    """Load what `save_weights` wrote into `model`, all or nothing; return the metadata.

    Each name, shape and dtype must agree. Raises CheckpointError listing what differs, or for a file that is missing,
    damaged or not safetensors; the model is as it was then.
    """
    path = Path(path)
    read_slots(path)
    try:
        with safe_open(path, framework="pt") as file:
            notes = dict(file.metadata() or {})
            state: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state |= {name: state[same] for name, same in json.loads(notes.pop(_TIED, "{}")).items()}
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} can't be read", found=error, fix="take another file") from error
    extra = {name: value for name, value in model.state_dict().items() if not isinstance(value, Tensor)}
    restore_model(model, state | extra)
    notes.pop("format", None)
    return notes


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy what shares memory with something before it (views of one tensor): the format wants each by itself."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return result
