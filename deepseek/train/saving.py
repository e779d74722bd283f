"""What a checkpoint of a run holds, and how a run goes on from it: every tensor and number the next step depends on.

Not here: how it gets to disk (`deepseek.checkpoint`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from deepseek.checkpoint.store import CheckpointStore
from deepseek.checkpoint.training_state import (
    optimizer_state,
    random_state,
    restore_model,
    restore_optimizer,
    restore_random_state,
)
from deepseek.errors import CheckpointError, StorageError
from deepseek.train.callbacks.callback_list import CallbackList
from deepseek.train.config import TrainConfig
from deepseek.train.plan import Plan
from deepseek.train.run_state import RunState
from deepseek.train.step import TrainStep

logger = logging.getLogger("deepseek.train")


class Saver:
    """The checkpoints of one run. A disk that refuses one is a warning: training goes on, the next one is tried."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self.folder = folder
        self.saved_step = -1
        self.store = CheckpointStore(
            folder / "checkpoints",
            keep_last=config.keep_checkpoints,
            keep_best=config.keep_best,
            keep_every=config.keep_every,
            monitor=config.monitor,
            mode=config.monitor_mode,
            asynchronous=config.async_checkpoints,
        )

    def newest(self) -> dict[str, Any]:
        """Return the state of the newest good checkpoint. Raises CheckpointError where there is none."""
        found = self.store.newest_good()
        if found is None:
            raise CheckpointError(
                f"{self.folder} has no good checkpoint to resume from", fix="start the run anew without resume"
            )
        logger.info("resuming from %s", found.path.name)
        return found.state

    def prepare(self, tree: dict[str, Any]) -> None:
        """Get memory for the copy ready in the background, once the optimizer has its states."""
        self.store.prepare(tree)

    def check(self) -> None:
        """Say what went wrong with a checkpoint written in the background, if anything did."""
        try:
            self.store.check()
        except (StorageError, CheckpointError) as error:
            self._warn(error)

    def save(self, state: RunState, tree: dict[str, Any], *, path: Path | None = None, last: bool = False) -> None:
        """Write a checkpoint of this step (with `path`: to that folder), in the background unless it is the `last` one.

        Raises StorageError for the last one only.
        """
        if last:
            self.wait_for_last()  # an older error must not look like one of this save
        try:
            self.store.save(state.step, tree, state.metrics, path=path)
            if path is None:
                self.saved_step = state.step
            if last:
                self.store.wait()
        except (StorageError, CheckpointError) as error:
            if last:
                raise
            self._warn(error)

    def wait_for_last(self) -> None:
        """Wait until what is being written is on disk, or say why it is not."""
        try:
            self.store.wait()
        except (StorageError, CheckpointError) as error:
            self._warn(error)

    def close(self) -> None:
        """Wait for what is being written, and end the writer."""
        try:
            self.store.close()
        except (StorageError, CheckpointError) as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        self.saved_step = -1
        logger.warning("training goes on without a checkpoint: %s", error)


def state_tree(state: RunState, plan: Plan, step: TrainStep, callbacks: CallbackList) -> dict[str, Any]:
    """Return everything the rest of the run depends on, as a tree of plain values and tensors."""
    return {
        "step": state.step,
        "position": state.position,
        "total_steps": plan.steps,
        "warmup_steps": plan.warmup_steps,
        "items": state.items,
        "seconds": state.seconds,
        "compiled": plan.compiled,
        "choices": plan.choices,
        "metrics": dict(state.metrics),
        "stop_reason": state.stop_reason,
        "model": state.model.state_dict(),
        "optimizer": optimizer_state(step.optimizer, step.model),
        "train_step": step.state_dict(),
        "callbacks": callbacks.state_dict(),
        "random": random_state(),
    }


def restore(saved: dict[str, Any], state: RunState, step: TrainStep, callbacks: CallbackList) -> None:
    """Put a checkpoint's tree back into the run. Raises CheckpointError when it is of another model."""
    restore_model(step.model, saved["model"])
    restore_optimizer(step.optimizer, step.model, saved["optimizer"])
    step.load_state_dict(saved["train_step"] if "train_step" in saved else {"scaler": saved.get("scaler")})
    callbacks.load_state_dict(saved.get("callbacks", {}))
    state.step = int(saved["step"])
    state.position = int(saved.get("position", state.step * state.config.gradient_accumulation_steps))
    state.items, state.seconds = int(saved["items"]), float(saved["seconds"])
    state.metrics = dict(saved.get("metrics") or {})
    if "val_loss" in saved and saved["val_loss"] is not None:  # format of version 1
        state.metrics = {"val_loss": float(saved["val_loss"])}
    state.stop_reason = saved.get("stop_reason")
    restore_random_state(saved["random"])
