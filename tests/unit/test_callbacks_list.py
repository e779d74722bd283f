"""The list of callbacks: order, cost, errors by name, states that come back, and functions as callbacks."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import torch

from deepseek.callbacks import EMA, Callback, CallbackList, EarlyStopping, LambdaCallback, Timer
from deepseek.checkpoint.tree import join_tree, split_tree
from deepseek.errors import ConfigError, TrainingError
from deepseek.train.callbacks.callback_list import MOMENTS
from tests.toy_callbacks import FakeRun, begun


class Writes(Callback):
    def __init__(self, name: str, lines: list[str]) -> None:
        self.name, self.lines = name, lines

    def on_step_end(self, state: Any) -> None:
        self.lines.append(f"{self.name} step {state.step}")

    def on_validation_end(self, state: Any) -> None:
        self.lines.append(f"{self.name} validation")

    def close(self) -> None:
        self.lines.append(f"{self.name} closed")


def test_they_are_called_in_their_order_and_only_where_they_have_a_method() -> None:
    lines: list[str] = []
    callbacks = CallbackList([Writes("a", lines), Writes("b", lines)])
    state = FakeRun()
    for moment in MOMENTS:
        assert callbacks.wants(moment) == (moment in ("on_step_end", "on_validation_end"))
        getattr(callbacks, moment)(state)
    callbacks.close()
    assert lines == ["a step 0", "b step 0", "a validation", "b validation", "a closed", "b closed"]
    assert not any(CallbackList().wants(moment) for moment in MOMENTS) and len(CallbackList()) == 0


def test_an_error_names_the_callback_and_the_moment() -> None:
    def fail(state: Any) -> None:
        raise ZeroDivisionError("by zero")

    callbacks = CallbackList([Writes("a", []), LambdaCallback(), LambdaCallback(on_epoch_end=fail)])
    with pytest.raises(TrainingError, match=r"callback LambdaCallback.1 failed in on_epoch_end") as caught:
        callbacks.on_epoch_end(FakeRun())
    assert "ZeroDivisionError: by zero" in str(caught.value)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)

    stopping = CallbackList([EarlyStopping("val_acc")])
    with pytest.raises(ConfigError, match="no 'val_acc'") as wrong:
        FakeRun().validate(stopping, val_loss=1.0)
    assert wrong.value.__notes__ == ["raised by callback EarlyStopping.0 in on_validation_end"]


def test_one_that_can_not_be_closed_does_not_keep_the_others_open(caplog: pytest.LogCaptureFixture) -> None:
    lines: list[str] = []

    class Broken(Callback):
        def close(self) -> None:
            raise OSError("gone")

        def on_exception(self, state: Any) -> None:
            raise OSError("gone too")

    callbacks = CallbackList([Broken(), Writes("a", lines)])
    callbacks.on_exception(FakeRun())
    callbacks.close()
    assert lines == ["a closed"] and "Broken.0 could not be closed" in caplog.text and "gone too" in caplog.text


def test_what_is_no_callback_is_refused() -> None:
    for wrong in (print, "ema", EMA, type):
        with pytest.raises(ConfigError, match="callback"):
            CallbackList([wrong])  # type: ignore[list-item]
    timer = Timer()
    with pytest.raises(ConfigError, match="twice"):
        CallbackList([timer, timer])
    with pytest.raises(ConfigError, match="did you mean 'on_step_end'"):
        LambdaCallback(on_step_ends=print)
    with pytest.raises(ConfigError, match="can't be called"):
        LambdaCallback(on_step_end=3)  # type: ignore[arg-type]


def test_states_come_back_through_a_checkpoints_tree_whatever_stands_between() -> None:
    state = FakeRun()
    callbacks = begun(state, EMA(0.9), Timer(clock=lambda: 5.0), EMA(0.5), EarlyStopping(restore_best=True))
    for loss in (3.0, 2.0, 2.5):
        state.do_step(callbacks)
        state.validate(callbacks, val_loss=loss)
    saved = callbacks.state_dict()
    plain, tensors = split_tree(saved)
    stored = join_tree(json.loads(json.dumps(plain, allow_nan=False)), {k: v.clone() for k, v in tensors.items()})

    others = (EMA(0.9), LambdaCallback(), EMA(0.5), Timer(), EarlyStopping(restore_best=True))
    fresh = CallbackList(others)
    fresh.load_state_dict(stored)
    again, _ = split_tree(fresh.state_dict())
    assert again == plain and set(saved) == {"EMA.0", "EMA.1", "Timer.0", "EarlyStopping.0"}
    for path, tensor in split_tree(fresh.state_dict())[1].items():
        assert torch.equal(tensor, tensors[path]), path
    assert others[4].waited == 1 and others[4].best == 2.0


def test_a_changed_list_is_said_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    state = FakeRun()
    saved = begun(state, Timer(), EMA(0.5)).state_dict()
    caplog.set_level(logging.WARNING)
    CallbackList([EMA(0.5), EarlyStopping()]).load_state_dict(saved)
    assert "without a saved state, beginning anew: EarlyStopping.0" in caplog.text
    assert "saved but no longer there: Timer.0" in caplog.text
    caplog.clear()
    CallbackList([LambdaCallback(), EMA(0.5), Timer()]).load_state_dict(saved)  # those without a state do not matter
    assert caplog.text == ""


def test_a_state_that_no_checkpoint_can_hold_is_named() -> None:
    class Odd(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"fine": [1, None, "a"], "lines": {"seen": {1, 2}}}

    with pytest.raises(TrainingError, match=r"callback Odd.0 can't be kept") as caught:
        CallbackList([Odd()]).state_dict()
    assert "set at /lines/seen" in str(caught.value)
