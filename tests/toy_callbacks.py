"""A run's state without a run, for tests of callbacks by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepseek.tasks.supervised import Supervised
from deepseek.train.batches import as_stream
from deepseek.train.callbacks.callback import Callback
from deepseek.train.callbacks.callback_list import CallbackList
from deepseek.train.config import TrainConfig
from deepseek.train.run_state import RunState
from tests.toy_training import mlp, pairs


class FakeRun(RunState):
    """A RunState that keeps what callbacks log and ask for."""

    def __init__(self, model: nn.Module | None = None, output_dir: Path | None = None, **changes: Any) -> None:
        model = model or mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        task, data = Supervised(nn.CrossEntropyLoss()), as_stream(pairs())
        super().__init__(model, task, optimizer, TrainConfig(tensorboard=False), data, output_dir, 100)
        self.logged: list[dict[str, float]] = []
        self.wanted: list[Path | None] = []
        for name, value in changes.items():
            setattr(self, name, value)

    def log(self, values: dict[str, float]) -> None:
        self.logged.append({"step": self.step, **values})

    def request_checkpoint(self, path: Path | None = None) -> None:
        self.wanted.append(path)

    def do_step(self, callbacks: CallbackList, loss: float = 1.0) -> None:
        """Move the weights a little, in place, as an optimizer would."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(0.9).add_(0.01 * (self.step % 3))
        self.step += 1
        self.position += 1
        self.items += 16
        self.loss = loss
        callbacks.on_step_end(self)
        callbacks.on_save(self)

    def validate(self, callbacks: CallbackList, **metrics: float) -> None:
        """Tell the callbacks of a validation with these numbers."""
        callbacks.on_validation_begin(self)
        self.metrics = metrics
        callbacks.on_validation_end(self)


def begun(state: RunState, *callbacks: Callback) -> CallbackList:
    """Return the callbacks as a run that has begun calls them."""
    both = CallbackList(callbacks)
    both.on_train_begin(state)
    return both
