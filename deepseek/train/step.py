"""One optimizer step: forward, backward, clip, update. The whole of the arithmetic, and nothing else.

The loss is divided by the number of items over all micro-batches of the step, so 1x8, 2x4 and 8x1 micro-batches give
the same update. A step whose gradient is not finite changes no weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deepseek.errors import DataError, NonFiniteLossError
from deepseek.optim.precision import Precision
from deepseek.tasks.task import Task, to_device

MAX_BAD_STEPS = 10


class StepResult(NamedTuple):
    """What a step did: mean loss over its items, gradient norm before clipping, items; `skipped` changed no weight.

    A step without items has no loss and no norm: both are nan.
    """

    loss: float
    grad_norm: float
    items: int
    skipped: bool


def _nothing() -> None:
    """What most models do after a step."""


class TrainStep:
    """Model, task and optimizer bound together; call it with the micro-batches of one step.

    A method `after_step()` of the model is called after each update: a mixture of experts keeps its balance there.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizer: Optimizer,
        precision: Precision,
        *,
        max_grad_norm: float | None = 1.0,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.model = model
        self.task = task
        self.optimizer = optimizer
        self.precision = precision
        self.max_grad_norm = max_grad_norm
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.loss_sum: Callable[[nn.Module, Any], Tensor] = task.loss_sum
        self.parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        self.bad_steps = 0
        self.empty_steps = 0
        self._on_cpu = precision.device.type == "cpu"
        self._after_step: Callable[[], None] = getattr(model, "after_step", _nothing)

    def __call__(self, batches: Sequence[Any]) -> StepResult:
        """Do one step on its micro-batches.

        Raises NonFiniteLossError after ten bad steps in a row (with a loss scale: once it has fallen below 1),
        DataError after ten without targets.
        """
        if not self._on_cpu:
            batches = [to_device(batch, self.precision.device) for batch in batches]
        items = sum(self.task.count(batch) for batch in batches)
        if items == 0:
            return self._skip_empty()
        self.empty_steps = 0
        loss = self.backward(batches, items)
        norm = self._clip()
        good = math.isfinite(loss) and math.isfinite(norm)
        if self.scaler is None:
            if good:
                self.optimizer.step()
        elif math.isfinite(loss):
            self.scaler.step(self.optimizer)  # leaves the weights alone where a gradient is not finite
            self.scaler.update()
        else:
            self.scaler.update(self.scaler.get_scale() * self.scaler.get_backoff_factor())
        if good:
            self._after_step()
        self.optimizer.zero_grad(set_to_none=True)
        self.bad_steps = 0 if good else self.bad_steps + 1
        if self.bad_steps >= MAX_BAD_STEPS and (self.scaler is None or self.scaler.get_scale() < 1):
            raise NonFiniteLossError(
                f"the loss or its gradient was not finite in {self.bad_steps} steps in a row",
                found=f"loss {loss}, gradient norm {norm}",
                fix="lower the learning rate, or set precision: fp32; the weights are those of the last good step",
            )
        return StepResult(loss, norm, items, not good)

    def backward(self, batches: Sequence[Any], items: int) -> float:
        """Add up the gradients of the micro-batches, the loss divided by `items`; return the mean loss."""
        total: Tensor | None = None
        for batch in batches:
            with self.precision.autocast():
                loss = self.loss_sum(self.model, batch)
            share = loss.new_full((), 1 / items)  # the division, done where the gradient begins
            loss.backward(share if self.scaler is None else self.scaler.scale(share))  # type: ignore[no-untyped-call]
            total = loss.detach() if total is None else total + loss.detach()
        return total.item() / items if total is not None else 0.0

    def _clip(self) -> float:
        """Scale the gradients down to `max_grad_norm`; return their norm before."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        limit = math.inf if self.max_grad_norm is None else self.max_grad_norm
        if math.isfinite(limit):
            return float(nn.utils.clip_grad_norm_(self.parameters, limit))
        return float(nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))

    def _skip_empty(self) -> StepResult:
        """Skip a step without targets (a whole batch of prompts); ten in a row are no accident."""
        self.empty_steps += 1
        if self.empty_steps >= MAX_BAD_STEPS:
            raise DataError(
                f"{self.empty_steps} steps in a row had no target to learn from",
                wanted="labels other than -100",
                fix="raise batch_size or max_length, or check the data",
            )
        return StepResult(math.nan, math.nan, 0, True)
