"""The callbacks of a run: called in their order, named where they fail, kept in checkpoints.

Only overridden methods are called, so an empty list costs the loop one call of an empty `for` a moment, and
`wants("on_gradients")` tells it which moments it can leave out. Not here: when the moments are (`train/loop.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from deepseek.errors import ConfigError, DeepSeekError, TrainingError
from deepseek.train.callbacks.callback import Callback

if TYPE_CHECKING:
    from deepseek.train.run_state import RunState

logger = logging.getLogger("deepseek.train")

MOMENTS = (
    "on_train_begin",
    "on_gradients",
    "on_step_end",
    "on_epoch_end",
    "on_save",
    "on_validation_begin",
    "on_validation_end",
    "on_train_end",
    "on_exception",
)


class CallbackList:
    """Calls each of `callbacks` at its moments, in the order given, ends as well as beginnings.

    An error in a callback stops the run: as TrainingError naming the callback and the moment, or, where it is one of
    our own errors, as itself with that note.
    Raises ConfigError for what is no Callback, a class in place of an object, or one object twice.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.callbacks = tuple(callbacks)
        _check(self.callbacks)
        self.names = _names(self.callbacks)
        self._called = {
            moment: [
                (name, getattr(callback, moment))
                for name, callback in zip(self.names, self.callbacks, strict=True)
                if overrides(callback, moment)
            ]
            for moment in MOMENTS
        }
        for callback in self.callbacks:
            callback.peers = self.callbacks

    def __len__(self) -> int:
        return len(self.callbacks)

    def wants(self, moment: str) -> bool:
        """Return whether any callback is called at `moment` ("on_gradients")."""
        return bool(self._called[moment])

    def on_train_begin(self, state: RunState) -> None:
        """Call `on_train_begin` of each."""
        self._call("on_train_begin", state)

    def on_gradients(self, state: RunState) -> None:
        """Call `on_gradients` of each; the loop leaves it out where `wants("on_gradients")` is False."""
        self._call("on_gradients", state)

    def on_step_end(self, state: RunState) -> None:
        """Call `on_step_end` of each."""
        self._call("on_step_end", state)

    def on_save(self, state: RunState) -> None:
        """Call `on_save` of each."""
        self._call("on_save", state)

    def on_epoch_end(self, state: RunState) -> None:
        """Call `on_epoch_end` of each."""
        self._call("on_epoch_end", state)

    def on_validation_begin(self, state: RunState) -> None:
        """Call `on_validation_begin` of each."""
        self._call("on_validation_begin", state)

    def on_validation_end(self, state: RunState) -> None:
        """Call `on_validation_end` of each."""
        self._call("on_validation_end", state)

    def on_train_end(self, state: RunState) -> None:
        """Call `on_train_end` of each."""
        self._call("on_train_end", state)

    def on_exception(self, state: RunState) -> None:
        """Call `on_exception` of each; one that fails is a warning, since another error is on its way."""
        for name, method in self._called["on_exception"]:
            try:
                method(state)
            except Exception as error:
                logger.warning("callback %s failed in on_exception: %s: %s", name, type(error).__name__, error)

    def close(self) -> None:
        """Close each; one that fails is a warning."""
        for name, callback in zip(self.names, self.callbacks, strict=True):
            try:
                callback.close()
            except Exception as error:
                logger.warning("callback %s could not be closed: %s: %s", name, type(error).__name__, error)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of those that have one, by class name and number among its class ("EMA.0").

        Raises TrainingError for a state with something that a checkpoint can't hold.
        """
        states = {}
        for name, callback in self._with_state().items():
            states[name] = callback.state_dict()
            _check_plain(states[name], name, "")
        return states

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Give each its state back. A list that changed is a warning: new callbacks begin anew, states are dropped.

        Raises what a callback raises for a state that is not its own.
        """
        own = self._with_state()
        new, gone = sorted(set(own) - set(states)), sorted(set(states) - set(own))
        if new or gone:
            logger.warning(
                "the callbacks are not those the run was saved with: %s",
                "; ".join(
                    text
                    for names, text in (
                        (new, f"without a saved state, beginning anew: {', '.join(new)}"),
                        (gone, f"saved but no longer there: {', '.join(gone)}"),
                    )
                    if names
                ),
            )
        for name, callback in own.items():
            if name in states:
                try:
                    callback.load_state_dict(states[name])
                except Exception as error:
                    raise _named(error, name, "load_state_dict") from error

    def _with_state(self) -> dict[str, Callback]:
        pairs = zip(self.names, self.callbacks, strict=True)
        return {name: callback for name, callback in pairs if overrides(callback, "state_dict")}

    def _call(self, moment: str, state: RunState) -> None:
        for name, method in self._called[moment]:
            try:
                method(state)
            except Exception as error:
                raise _named(error, name, moment) from error


def overrides(callback: Callback, method: str) -> bool:
    """Return whether `callback` has a method of its own in place of the one that does nothing."""
    return getattr(getattr(callback, method), "__func__", None) is not getattr(Callback, method)


def _check(callbacks: tuple[Callback, ...]) -> None:
    for callback in callbacks:
        if isinstance(callback, type) and issubclass(callback, Callback):
            name = callback.__name__
            raise ConfigError("a callback is a class, not an object", found=name, fix=f"write {name}(...)")
        if not isinstance(callback, Callback):
            raise ConfigError(
                "this is no callback",
                found=type(callback).__name__,
                wanted="an object of a class that extends deepseek.callbacks.Callback",
            )
    if len({id(callback) for callback in callbacks}) != len(callbacks):
        raise ConfigError("one callback is in the list twice", fix="make two objects")


def _names(callbacks: tuple[Callback, ...]) -> list[str]:
    """Return "EMA.0", "Timer.0", "EMA.1" and so on: another callback in the list moves no name."""
    seen: dict[str, int] = {}
    names = []
    for callback in callbacks:
        kind = type(callback).__name__
        names.append(f"{kind}.{seen.get(kind, 0)}")
        seen[kind] = seen.get(kind, 0) + 1
    return names


def _named(error: Exception, name: str, moment: str) -> Exception:
    """Return the error to raise for one in a callback."""
    if isinstance(error, DeepSeekError):
        error.add_note(f"raised by callback {name} in {moment}")
        return error
    problem = f"callback {name} failed in {moment}"
    return TrainingError(problem, found=f"{type(error).__name__}: {error}", fix="see the error above this one")


def _check_plain(value: Any, name: str, path: str) -> None:
    if value is None or isinstance(value, str | bool | int | float | Tensor):
        return
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        for key, item in value.items():
            _check_plain(item, name, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_plain(item, name, f"{path}/{index}")
    else:
        raise TrainingError(
            f"the state of callback {name} can't be kept in a checkpoint",
            found=f"{type(value).__name__} at {path or '/'}",
            wanted="dicts with text keys, lists, numbers, text, true, false, None and tensors",
        )
