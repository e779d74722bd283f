"""Weights, or whole checkpoints, under names of one's own: `ModelCheckpoint('./checkpoints/epoch_{epoch}')`.

Not the checkpoints a run is resumed from by itself: those are in `output_dir/checkpoints`, and always written.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deepseek.checkpoint.weights import save_weights
from deepseek.errors import ConfigError, StorageError
from deepseek.train.callbacks.callback import Callback
from deepseek.train.callbacks.ema import averaged_weights
from deepseek.train.callbacks.monitor import Mode, Monitor
from deepseek.train.callbacks.path_fields import PathFields

if TYPE_CHECKING:
    from deepseek.train.run_state import RunState

logger = logging.getLogger("deepseek.train")

_SUFFIX = ".safetensors"
_OTHER_FORMATS = (".bin", ".ckpt", ".h5", ".hdf5", ".keras", ".npz", ".pkl", ".pt", ".pth")


class ModelCheckpoint(Callback):
    """Saves at the end of each epoch, or every `save_freq` steps, to `filepath` with its fields filled in.

    `filepath` is relative to the working folder; fields: {epoch}, {step}, {items}, {loss}, {val_loss:.3f} and every
    other number of the validation. With `save_weights_only` it is a safetensors file, written whole or not at all (the
    suffix is added; `deepseek.checkpoint.load_weights` reads it); with an EMA among the callbacks it holds the averaged
    weights, those that validation measures. Without, it is a folder with everything to go on from, written at the end
    of the step; the run then needs an output_dir.

    `save_best_only` saves at each validation, not at `save_freq`, if its `monitor` is better than all before; `mode`
    says what is better ("auto": by the name). A disk that refuses is a warning; the next save tries again.

    Attributes: `last_path`, and with `save_best_only` `best` (the monitored value of `last_path`).
    Raises ConfigError for a wrong argument, and at the first save for a field that the run has no number for.
    """

    def __init__(
        self,
        filepath: str | Path,
        *,
        save_weights_only: bool = False,
        save_freq: Literal["epoch"] | int = "epoch",
        monitor: str = "val_loss",
        mode: Mode = "auto",
        save_best_only: bool = False,
    ) -> None:
        self.filepath = PathFields(filepath)
        suffix = Path(self.filepath.text).suffix.lower()
        if suffix in _OTHER_FORMATS or (suffix == _SUFFIX and not save_weights_only):
            raise ConfigError(
                "ModelCheckpoint writes no such file",
                found=self.filepath.text,
                wanted="a name without suffix, or with .safetensors and save_weights_only=True",
            )
        every_epoch = save_freq == "epoch"
        if not every_epoch and (isinstance(save_freq, bool) or not isinstance(save_freq, int) or save_freq < 1):
            raise ConfigError("save_freq is wrong", found=repr(save_freq), wanted="'epoch' or a number of steps")
        if save_best_only and not every_epoch:
            raise ConfigError(
                "save_freq has no effect with save_best_only",
                found=f"save_freq={save_freq}",
                fix="leave it out: the best is saved at the validation that finds it (validate_every)",
            )
        self.save_weights_only = save_weights_only
        self.save_freq = save_freq
        self.save_best_only = save_best_only
        self.monitor = Monitor(monitor, mode)
        self.best: float | None = None
        self.last_path: Path | None = None
        self._step_of: dict[Path, int] = {}
        self._warned = False

    def on_train_begin(self, state: RunState) -> None:
        if not self.save_weights_only and state.output_dir is None:
            raise ConfigError(
                "ModelCheckpoint has nothing to save whole checkpoints of",
                found="a run without output_dir",
                fix="give the trainer output_dir, or set save_weights_only=True",
            )
        if state.step == 0:
            self.best = self.last_path = None
            self._step_of.clear()

    def on_save(self, state: RunState) -> None:
        if isinstance(self.save_freq, int) and state.step % self.save_freq == 0:
            self._save(state)

    def on_epoch_end(self, state: RunState) -> None:
        if self.save_freq == "epoch" and not self.save_best_only:
            self._save(state)

    def on_validation_end(self, state: RunState) -> None:
        if self.save_best_only:
            value = self.monitor.value(state.metrics)
            if self.monitor.better(value, self.best) and self._save(state):
                self.best = value

    def on_train_end(self, state: RunState) -> None:
        if self.last_path is None:
            logger.warning(
                "ModelCheckpoint saved nothing to %s: the run ended after %d steps (%.3g epochs); save_freq is %r%s",
                *(self.filepath.text, state.step, state.epoch, self.save_freq),
                *(", and no validation had a finite " + self.monitor.name if self.save_best_only else "",),
            )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "last_path": str(self.last_path) if self.last_path is not None else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
        self.last_path = Path(state["last_path"]) if state["last_path"] is not None else None

    def _save(self, state: RunState) -> bool:
        """Write the file or ask for the folder; return False where the disk refused."""
        path = self.filepath.path(state)
        if self.save_weights_only and path.suffix != _SUFFIX:
            path = path.with_name(path.name + _SUFFIX)
        self._warn_of_overwriting(path, state.step)
        if self.save_weights_only:
            try:
                with averaged_weights(self.peers):
                    save_weights(state.weights(), path, step=str(state.step), **_texts(state.metrics))
            except StorageError as error:
                logger.warning("no weights of step %d, training goes on: %s", state.step, error)
                return False
        else:
            state.request_checkpoint(path.absolute())  # another process writes it
        self.last_path = path
        return True

    def _warn_of_overwriting(self, path: Path, step: int) -> None:
        before = self._step_of.get(path, step)
        self._step_of[path] = step
        if before != step and not self.save_best_only and not self._warned:
            self._warned = True
            logger.warning(
                "ModelCheckpoint writes step %d over step %d: both are %s; put {step} into filepath to keep each",
                *(step, before, path),
            )


def _texts(metrics: dict[str, float]) -> dict[str, str]:
    return {name: repr(float(value)) for name, value in metrics.items()}
