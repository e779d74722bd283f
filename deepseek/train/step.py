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

from deepseek.checkpoint.training_state import random_state
from deepseek.errors import DataError, NonFiniteLossError
from deepseek.faults import fault_point
from deepseek.optim.clipped_step import ClippedStep
from deepseek.optim.clipping import Clipper, NormClip
from deepseek.optim.precision import Precision, is_exhausted
from deepseek.tasks.task import Task, to_device
from deepseek.train.memory.recovery import MicroBatchSplitter

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
    `on_gradients`, where set, is called when the gradients are complete, before they are clipped. `clipper` takes the
    place of `max_grad_norm`. After a bad step, `latest` and `latest_random` are the micro-batches of the latest step
    and the random states it began with, which is what finding the culprit needs.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizer: Optimizer,
        precision: Precision,
        *,
        max_grad_norm: float | None = 1.0,
        clipper: Clipper | None = None,
        scaler: torch.amp.GradScaler | None = None,
        splitter: MicroBatchSplitter | None = None,
    ) -> None:
        self.model = model
        self.task = task
        self.optimizer = optimizer
        self.precision = precision
        self.clipper: Clipper = clipper or NormClip(math.inf if max_grad_norm is None else max_grad_norm)
        self.splitter = splitter or MicroBatchSplitter()
        self._update = ClippedStep(optimizer, self.clipper)
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.loss_sum: Callable[[nn.Module, Any], Tensor] = task.loss_sum
        self.parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        self.on_gradients: Callable[[], None] | None = None
        self.bad_steps = 0
        self.empty_steps = 0
        self.latest: Sequence[Any] = ()
        self.latest_random: dict[str, Any] | None = None
        self._running = [
            buffer
            for module in model.modules()
            if getattr(module, "track_running_stats", False)
            for buffer in module.buffers(recurse=False)
        ]
        self._on_cpu = precision.device.type == "cpu"
        self._after_step: Callable[[], None] = getattr(model, "after_step", _nothing)

    def __call__(self, batches: Sequence[Any], items: int | None = None) -> StepResult:
        """Do one step on its micro-batches; `items` is what the task counts in them, where that is known.

        Raises NonFiniteLossError after ten bad steps in a row (with a loss scale: once it is below its floor),
        DataError after ten without targets.
        """
        items = sum(self.task.count(batch) for batch in batches) if items is None else items
        if not self._on_cpu:
            batches = [to_device(batch, self.precision.device) for batch in batches]
        if items == 0:
            return self._skip_empty()
        self.empty_steps = 0
        self.latest, self.latest_random = batches, random_state() if self.bad_steps else None
        fault_point("step.begin")
        running = [buffer.clone() for buffer in self._running]
        total = self._gradients_that_fit(batches, items)
        if fault_point("step.update"):
            nn.utils.clip_grads_with_norm_(self.parameters, 1.0, torch.tensor(math.nan))
        loss_sum, norm = self._clip_and_update(total)
        loss = loss_sum / items
        good = math.isfinite(loss) and math.isfinite(norm)
        if good:
            self._after_step()
        else:  # a bad batch has gone into the running means of batch norms
            for buffer, before in zip(self._running, running, strict=True):
                buffer.copy_(before)
        self.optimizer.zero_grad(set_to_none=True)
        self.bad_steps = 0 if good else self.bad_steps + 1
        if self.bad_steps >= MAX_BAD_STEPS and (self.scaler is None or is_exhausted(self.scaler)):
            raise NonFiniteLossError(
                f"the loss or its gradient was not finite in {self.bad_steps} steps in a row",
                found=f"loss {loss}, gradient norm {norm}",
                fix="lower the learning rate"
                + ("" if self.precision.dtype is None else ", or set precision: fp32")
                + "; the weights are those of the last good step",
            )
        return StepResult(loss, norm, items, not good)

    def backward(self, batches: Sequence[Any], items: int) -> float:
        """Add up the gradients of the micro-batches, the loss divided by `items`; return the mean loss."""
        return float(self._gradients_that_fit(batches, items)) / items

    def _gradients_that_fit(self, batches: Sequence[Any], items: int) -> Tensor:
        """Add up the gradients; where memory runs out, begin again with smaller micro-batches."""
        while True:
            try:
                return self._gradients(self.splitter.split(batches), items)
            except (RuntimeError, MemoryError) as error:
                failed = error
            if not self.splitter.recover(failed, batches, self.model):
                raise failed

    def _gradients(self, batches: Sequence[Any], items: int) -> Tensor:
        """Add up the gradients; return the summed loss, on the device."""
        total: Tensor | None = None
        with self.precision.matmul():
            for batch in batches:
                fault_point("step.forward")
                with self.precision.autocast():
                    loss = self.loss_sum(self.model, batch)
                if fault_point("step.backward"):
                    loss = loss * math.nan
                share = loss.new_full((), 1 / items)  # the division, done where the gradient begins
                loss.backward(share if self.scaler is None else self.scaler.scale(share))  # type: ignore[no-untyped-call]
                total = loss.detach() if total is None else total + loss.detach()
        return total if total is not None else torch.zeros(())

    def _clip_and_update(self, loss: Tensor) -> tuple[float, float]:
        """Clip and update where loss and gradients are finite; return the summed loss and the norm before clipping.

        Without a loss scale a GPU is waited for once, when all of the step's work is on its way.
        """
        scaler = self.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        if self.on_gradients is not None:
            self.on_gradients()
        if scaler is None:
            norm = self._update(self.parameters, loss)
            if self._on_cpu:
                return float(loss), float(norm)
            both: list[float] = torch.stack([loss.float(), norm.to(loss.device)]).tolist()
            return both[0], both[1]
        norm = self.clipper(self.parameters)
        if math.isfinite(float(loss)):
            scaler.step(self.optimizer)  # leaves the weights alone where a gradient is not finite
            scaler.update()
        else:
            scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
        return float(loss), float(norm)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next steps depend on besides weights and optimizer: loss scale, clipper, bad steps."""
        return {
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "clipper": self.clipper.state_dict(),
            "splitter": self.splitter.state_dict(),
            "bad_steps": self.bad_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned; parts that are not there stay as they are."""
        if self.scaler is not None and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        if state.get("clipper"):
            self.clipper.load_state_dict(state["clipper"])
        if state.get("splitter"):
            self.splitter.load_state_dict(state["splitter"])
        self.bad_steps = int(state.get("bad_steps", 0))

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
