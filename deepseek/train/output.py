"""The output folder of a training run: held by one process, never two runs in one; its tokenizer and its bundle.

Not here: checkpoints (`deepseek.checkpoint`) and metrics (`metrics_log.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from deepseek import bundle
from deepseek.checkpoint.store import list_checkpoints
from deepseek.config import Config
from deepseek.data import Tokenizer
from deepseek.errors import CheckpointError, ConfigError, TokenizerError
from deepseek.files import folder_lock, sweep_temporaries
from deepseek.models.factory import template_of
from deepseek.registry import TASKS


@contextlib.contextmanager
def hold_output(folder: Path | None, *, resume: bool) -> Iterator[None]:
    """Hold the folder for this process; what killed writers left is removed.

    Raises RunLockedError while another process holds it, CheckpointError when there is nothing to resume, ConfigError
    when a new run would mix its checkpoints with those of an earlier one.
    """
    if folder is None:
        if resume:
            raise CheckpointError("nothing to resume: the run has no output folder", fix="set output_dir")
        yield
        return
    checkpoints = folder / "checkpoints"
    if resume and not list_checkpoints(checkpoints):
        raise CheckpointError(f"{folder} has no checkpoint to resume from", fix="start the run anew without resume")
    with folder_lock(folder):
        sweep_temporaries(folder)
        sweep_temporaries(checkpoints)
        if not resume and list_checkpoints(checkpoints):
            raise ConfigError(
                f"{folder} holds a run already",
                found=f"its checkpoint {list_checkpoints(checkpoints)[0].name}",
                fix="go on with resume=True (--resume), or choose another output folder",
            )
        yield


def stored_tokenizer(folder: Path, given: Tokenizer | None) -> Tokenizer | None:
    """Return the tokenizer that the run in `folder` began with, or `given` where none is stored.

    Raises TokenizerError if `given` is another one.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return given
    stored = Tokenizer.load(path)
    if given is not None and given.sha256 != stored.sha256:
        raise TokenizerError(
            "the run began with another tokenizer", wanted=str(path), fix="resume without naming a tokenizer"
        )
    return stored


def save_tokenizer(folder: Path | None, tokenizer: Tokenizer | None) -> None:
    """Keep the tokenizer with the run. Raises StorageError."""
    if folder is not None and tokenizer is not None:
        tokenizer.save(folder / "tokenizer.json")


def save_bundle(folder: Path, model: nn.Module, tokenizer: Tokenizer | None, task: str) -> Path | None:
    """Write `folder/bundle`; None for a model or a task that a bundle can't hold. Raises StorageError."""
    config = getattr(model, "config", None)
    if not isinstance(config, Config) or task not in TASKS:
        return None
    try:
        template_of(config)
    except ConfigError:
        return None
    return bundle.save(model, folder / "bundle", tokenizer=tokenizer, task=task)
