"""Stopping when the validation no longer gets better. Prechelt 1998, "Early stopping - but when?" (patience)."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepseek.errors import ConfigError
from deepseek.train.callbacks.callback import Callback
from deepseek.train.callbacks.ema import EMA, averaged_weights
from deepseek.train.callbacks.monitor import Mode, Monitor

if TYPE_CHECKING:
    from deepseek.train.run_state import RunState

logger = logging.getLogger("deepseek.train")


class EarlyStopping(Callback):
    """Ends the run after `patience` validations in a row of which none was better than the best before.

    Better is by more than `min_delta`, in the sense of `mode` ("auto": by the name of `monitor`). With a `baseline`,
    a validation counts as better only if it also beats that value. A value that is not finite is never better.

    `restore_best` puts the weights of the best validation (averaged ones, where an EMA is in the run) into the trained
    model at the end of the run, stopped early or not. They cost the memory of one copy, in checkpoints too.

    Attributes: `best`, `best_step`, `waited` (validations since then).
    Raises ConfigError for a wrong argument, and at the first validation for a number that it does not have.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 3,
        min_delta: float = 0.0,
        mode: Mode = "auto",
        *,
        baseline: float | None = None,
        restore_best: bool = False,
    ) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ConfigError("patience is wrong", found=repr(patience), wanted="at least 1 validation")
        if baseline is not None and not math.isfinite(baseline):
            raise ConfigError("baseline is wrong", found=baseline, wanted="a finite number, or None")
        self.monitor = Monitor(monitor, mode, min_delta)
        self.patience = patience
        self.baseline = baseline
        self.restore_best = restore_best
        self.best: float | None = None
        self.best_step = self.waited = 0
        self._weights: dict[str, Tensor] = {}

    def on_train_begin(self, state: RunState) -> None:
        if state.step == 0:
            self.best, self.best_step, self.waited = None, 0, 0
            self._weights = {}

    def on_validation_end(self, state: RunState) -> None:
        value = self.monitor.value(state.metrics)
        self.waited += 1
        if self.monitor.better(value, self.best):
            self.best, self.best_step = value, state.step
            if self.restore_best:
                with averaged_weights(self.peers):
                    self._keep(state.weights())
            if self.baseline is None or self.monitor.better(value, self.baseline):
                self.waited = 0
        if self.waited >= self.patience:
            best = f"best {self.best:.6g} at step {self.best_step}" if self.best is not None else "never finite"
            state.stop(f"{self.monitor.name} did not get better in {self.waited} validations ({best})")

    @torch.no_grad()
    def on_train_end(self, state: RunState) -> None:
        if not self._weights:
            return
        for name, value in state.weights().items():
            value.copy_(self._weights[name])
        for peer in self.peers:
            if isinstance(peer, EMA):
                peer.keeps_model = True
        logger.info("the trained model has the weights of step %d, the best validation", self.best_step)

    def state_dict(self) -> dict[str, Any]:
        counts = {"best": self.best, "best_step": self.best_step, "waited": self.waited}
        return {**counts, "weights": dict(self._weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_step, self.waited = state["best"], state["best_step"], state["waited"]
        self._weights = {name: value.clone() for name, value in state["weights"].items()} if self.restore_best else {}

    @torch.no_grad()
    def _keep(self, weights: dict[str, Tensor]) -> None:
        if set(self._weights) != set(weights):
            self._weights = {name: torch.empty_like(value) for name, value in weights.items()}
        for name, value in weights.items():
            self._weights[name].copy_(value)
