"""What a callback is: an object whose methods the loop calls at fixed moments of a run.

A callback sees the run (`RunState`) and may log, save, stop it or swap weights. It is not a place for what changes the
arithmetic of a step: that is the task and the optimizer. The calls of one moment, in the order of a step:

    on_train_begin                                  once, after a resume has restored everything
        on_gradients                                after the backward pass, before the update; gradients are unscaled
        on_step_end                                 after the update
        on_validation_begin, on_validation_end      around a validation; state.metrics is new at its end
        on_epoch_end                                after the last step of a whole pass over the data
        on_save                                     last of a step, when its numbers are known: the moment for files
    on_train_end                                    once, before the trained model is written
    on_exception                                    instead, when an error or a second Ctrl-C ends the run
    close                                           once, however the run ended
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepseek.train.run_state import RunState


class Callback:
    """Base of all callbacks: every method does nothing. Override those you need; the others are never called."""

    peers: tuple[Callback, ...] = ()
    """The callbacks of the run in their order, this one among them; set when the run is put together."""

    def on_train_begin(self, state: RunState) -> None:
        """Before the first step; of a resumed run, after its state is back."""

    def on_gradients(self, state: RunState) -> None:
        """After the backward pass of a step, before clipping and update: `.grad` of the parameters can be read.

        The loop asks for this moment only where some callback overrides it. `state.step` is that of the step before.
        """

    def on_step_end(self, state: RunState) -> None:
        """After each step, done or skipped (`state.skipped`)."""

    def on_epoch_end(self, state: RunState) -> None:
        """After the last step of each whole pass over the data, and after the validation of that step."""

    def on_save(self, state: RunState) -> None:
        """At the very end of each step, after its validation: the moment to write files or ask for a checkpoint."""

    def on_validation_begin(self, state: RunState) -> None:
        """Before a validation: what is in the model now is what it measures."""

    def on_validation_end(self, state: RunState) -> None:
        """After a validation; `state.metrics` holds its numbers."""

    def on_train_end(self, state: RunState) -> None:
        """After the last step and its checkpoint, before the trained model is written; not after an interruption."""

    def on_exception(self, state: RunState) -> None:
        """When an error ends the run, before its state is saved: put back what is not as it was between two steps."""

    def close(self) -> None:
        """However the run ended: close files."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the callback needs to go on: a tree of plain values (JSON) and tensors, kept in checkpoints."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned; called before `on_train_begin`. Tuples come back as lists."""
