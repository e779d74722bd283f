"""The training loop, top to bottom: rate, batches, step, log, validate, save.

What varies is elsewhere: the arithmetic in `step.py`, the task in `deepseek.tasks`, the order of the data in its
loader, what is done besides in `callbacks/`. Everything needed to go on is in `saving.state_tree`; a resumed run does
the same steps as one never stopped.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

from deepseek.checkpoint.training_state import seed_random
from deepseek.errors import CheckpointError, DeepSeekError, NonFiniteLossError
from deepseek.faults import fault_point
from deepseek.nn import choices
from deepseek.train.bad_step import explain_bad_step
from deepseek.train.batches import BatchStream
from deepseek.train.callbacks.callback_list import CallbackList
from deepseek.train.interrupt import Interrupt, graceful_interrupt
from deepseek.train.metrics_log import MetricsLog
from deepseek.train.plan import make_plan
from deepseek.train.prefetch import prefetch
from deepseek.train.progress import TrainingProgress, wants_progress
from deepseek.train.result import TrainResult
from deepseek.train.run import TrainingRun
from deepseek.train.run_state import RunState
from deepseek.train.saving import Saver, restore, state_tree
from deepseek.train.step import StepResult

_REPLAN_EVERY = 50  # steps; the first few are slower than the rest
_MAX_ROLLBACKS = 3

logger = logging.getLogger("deepseek.train")


def train_loop(run: TrainingRun) -> TrainResult:
    """Train to the end of the plan, until a callback stops it, or until Ctrl-C or SIGTERM; return the numbers.

    The caller holds the output folder. Raises CheckpointError when `resume` finds only damaged checkpoints,
    NonFiniteLossError when the loss stays NaN or infinite, StorageError when the last state can't be saved.
    """
    with contextlib.ExitStack() as stack:
        seed_random(run.config.seed)
        loop = _Loop(run, stack)
        try:
            return loop.train()
        except BaseException as error:
            loop.callbacks.on_exception(loop.state)
            loop.save_after(error)
            raise


class _Loop:
    """One run in progress."""

    def __init__(self, run: TrainingRun, stack: contextlib.ExitStack) -> None:
        config, step = run.config, run.step
        self.run, self.config, self.step = run, config, step
        self.peaks = [float(group.setdefault("initial_lr", group["lr"])) for group in step.optimizer.param_groups]
        self.saver = Saver(run.output_dir, config) if run.output_dir is not None else None
        if self.saver is not None:
            stack.callback(self.saver.close)
        saved = self._saved() if run.resume else None
        self.plan, self.result = make_plan(run, saved)
        stack.enter_context(choices.using(self.plan.choices))
        self.replans = saved is None
        self.callbacks = CallbackList(run.callbacks)
        stack.callback(self.callbacks.close)
        state = RunState(step.model, step.task, step.optimizer, config, run.data, run.output_dir, self.plan.steps)
        self.state, self.rollbacks, self.in_step = state, 0, True
        if saved is not None:
            restore(saved, state, step, self.callbacks)
            if self.saver is not None:
                self.saver.saved_step = state.step
        if run.output_dir is not None:
            state.metrics_log = MetricsLog(run.output_dir, tensorboard=config.tensorboard, from_step=state.step)
            stack.callback(state.metrics_log.close)
        wanted = self.callbacks.wants("on_gradients")
        step.on_gradients = (lambda: self.callbacks.on_gradients(state)) if wanted else None
        show = wants_progress(config.progress)
        self.bar = stack.enter_context(TrainingProgress(self.plan.steps, state.step, run.unit, show=show))
        self.interrupt: Interrupt = stack.enter_context(graceful_interrupt())
        device = step.precision.device
        ahead = self.plan.prefetch
        self.stream = prefetch(run.steps, state.position, device=device) if ahead else run.steps.iterate(state.position)
        stack.callback(lambda: self.stream.close())
        self.wants_epochs = self.callbacks.wants("on_epoch_end")
        self.epoch = self._epochs_done()

    def train(self) -> TrainResult:
        """Go on to the end."""
        state, result, prepared = self.state, self.result, False
        self.callbacks.on_train_begin(state)
        while not self._is_over():
            update = self._one_step()
            if update is None:  # rolled back
                continue
            self._account(update)
            if self.saver is not None and not prepared:
                self.saver.prepare(self._tree())
                prepared = True
            self.callbacks.on_step_end(state)
            if self.run.validate is not None and (self._is_over() or state.step % self.plan.validate_every == 0):
                self._validate()
            self._end_epoch()
            self.callbacks.on_save(state)
            if self.interrupt.requested and state.step < self.plan.steps:
                result.interrupted, result.signal = True, self.interrupt.signal
                break
            self._save_in_turn()
        self.bar.finish(state.step)
        result.val_loss, result.metrics = state.metrics.get("val_loss"), dict(state.metrics)
        result.stop_reason = state.stop_reason
        self._save_at_end()
        if not result.interrupted:
            self.callbacks.on_train_end(state)
        return result

    def _one_step(self) -> StepResult | None:
        """Do a step and return what it did; None where the run was set back to its newest checkpoint instead."""
        start = time.perf_counter()
        fault_point("data.next")
        for group, peak in zip(self.step.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = self.plan.rate(self.state.step, peak)
        self.in_step = True
        taken = next(self.stream)
        self.state.position = taken.position
        try:
            update = self.step(taken.batches, taken.items)
        except NonFiniteLossError as error:
            explained = explain_bad_step(self.step, error, self.run.output_dir, self.state.step)
            if self.config.on_nonfinite == "stop" or not self._roll_back(explained):
                raise explained from None
            return None
        seconds = time.perf_counter() - start
        self.result.seconds += seconds
        self.state.seconds += seconds
        return update

    def _account(self, update: StepResult) -> None:
        state, result, config = self.state, self.result, self.config
        state.step += 1
        self.in_step = False
        state.items += update.items
        state.loss, state.grad_norm, state.skipped = update.loss, update.grad_norm, update.skipped
        state.learning_rate = self.step.optimizer.param_groups[0]["lr"]
        result.steps = state.step
        result.items += update.items
        if update.items:
            result.losses.append(update.loss)
        result.skipped_steps += update.skipped
        if self.replans and state.step % _REPLAN_EVERY == 0:
            self.plan.keep_to_budget(result)
            state.total_steps = self.plan.steps
        self.bar.update(state.step, update.loss, result.items_per_second)
        if state.metrics_log is not None and (state.step % config.log_every == 0 or state.step == self.plan.steps):
            state.log(self._row())

    def _is_over(self) -> bool:
        return self.state.step >= self.plan.steps or self.state.stop_reason is not None

    def _end_epoch(self) -> None:
        if self.wants_epochs and ((epoch := self._epochs_done()) != self.epoch or self._is_over()):
            self.epoch = epoch
            self.callbacks.on_epoch_end(self.state)

    def _validate(self) -> None:
        state = self.state
        if self.run.validate is None:
            return
        fault_point("validation")
        self.callbacks.on_validation_begin(state)
        state.metrics = {f"val_{name}": value for name, value in self.run.validate().items()}
        self.callbacks.on_validation_end(state)
        state.log({"seconds": state.seconds, **state.metrics})

    def _save_in_turn(self) -> None:
        if self.saver is None:
            return
        self.saver.check()
        state, wanted = self.state, self.state.wanted_checkpoints
        if state.step % self.plan.checkpoint_every == 0:
            wanted.append(None)
        for path in dict.fromkeys(wanted):
            self.saver.save(state, self._tree(), path=path)
        wanted.clear()

    def _save_at_end(self) -> None:
        if self.saver is None:
            return
        state = self.state
        self.saver.wait_for_last()
        if self.saver.saved_step != state.step:
            self.saver.save(state, self._tree(), last=True)
        if self.result.interrupted:
            logger.warning(
                "stopped at step %d of %d and saved in %s; resume=True (--resume) goes on from there",
                *(state.step, self.plan.steps, self.run.output_dir),
            )

    def save_after(self, error: BaseException) -> None:
        """Save the latest step where an error came between steps (a callback, a validation): nothing is lost."""
        if self.saver is None or self.in_step or not isinstance(error, Exception):
            return
        try:
            if self.saver.saved_step != self.state.step:
                self.saver.save(self.state, self._tree(), last=True)
        except DeepSeekError as problem:
            logger.warning("the latest step could not be saved: %s", problem)

    def _roll_back(self, error: NonFiniteLossError) -> bool:
        """Take the weights of the newest checkpoint and go on behind the batches that broke them.

        Return whether that could be done: there is a good checkpoint, and it was not done too often.
        """
        state, position = self.state, self.state.position
        if self.saver is None or self.rollbacks >= _MAX_ROLLBACKS:
            return False
        self.saver.wait_for_last()
        found = self.saver.store.newest_good()
        if found is None:
            return False
        restore(found.state, state, self.step, self.callbacks)
        state.position = position
        self.rollbacks += 1
        self.result.rollbacks = self.rollbacks
        logger.warning("rolled back to step %d, going on behind the bad batches: %s", state.step, error.problem)
        return True

    def _saved(self) -> dict[str, Any]:
        if self.saver is None:
            raise CheckpointError("nothing to resume: the run has no output folder", fix="set output_dir")
        return self.saver.newest()

    def _tree(self) -> dict[str, Any]:
        return state_tree(self.state, self.plan, self.step, self.callbacks)

    def _epochs_done(self) -> int:
        return int(self.state.epoch) if self.wants_epochs else 0

    def _row(self) -> dict[str, float]:
        state, every = self.state, self.config.log_every
        recent = [loss for loss in self.result.losses[-every:] if math.isfinite(loss)]
        return {
            self.run.unit: state.items,
            "seconds": state.seconds,
            "loss": sum(recent) / len(recent) if recent else math.nan,
            "lr": state.learning_rate,
            "grad_norm": state.grad_norm,
            f"{self.run.unit}_per_second": self.result.items_per_second,
        }


def take(stream: BatchStream, limit: int | None) -> Iterator[Any]:
    """Yield one epoch of batches, at most `limit`."""
    return islice(stream.iterate(0), min(len(stream), limit or len(stream)))
