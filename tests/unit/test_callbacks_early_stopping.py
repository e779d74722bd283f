"""Early stopping: sequences worked out by hand, baselines, values that are not finite, and real runs."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from deepseek.callbacks import EarlyStopping, LambdaCallback
from deepseek.errors import ConfigError
from deepseek.train.callbacks.monitor import Monitor
from tests.toy_callbacks import FakeRun, begun
from tests.toy_gpt import toy_batches
from tests.toy_training import trainer, weights


def stops_at(values: list[float], name: str = "val_loss", **settings: Any) -> int | None:
    """Return the number of the validation after which the run is stopped, from 1."""
    stopping, state = EarlyStopping(name, **settings), FakeRun()
    callbacks = begun(state, stopping)
    for number, value in enumerate(values, 1):
        state.do_step(callbacks)
        state.validate(callbacks, **{name: value})
        if state.stop_reason is not None:
            return number
    return None


@pytest.mark.parametrize(
    ("values", "settings", "expected"),
    [
        ([5, 4, 3, 3.5, 3.2, 2.9, 3, 3.1, 3.2], {"patience": 3}, 9),
        ([5, 4, 4, 4], {"patience": 2}, 4),  # equal is not better
        ([5, 4.8, 4.6, 4.4, 4.2], {"patience": 2, "min_delta": 0.5}, 3),
        ([5, 4.8, 4.4, 4.2, 3.8], {"patience": 2, "min_delta": 0.5}, None),  # better than the best by more than 0.5
        ([math.nan, math.nan], {"patience": 2}, 2),
        ([math.inf, 3, math.nan, 2], {"patience": 2}, None),
        ([5, 4, 3, 2], {"patience": 3, "baseline": 1.0}, 3),  # gets better, but never beats the baseline
        ([5, 0.9, 0.95, 0.8], {"patience": 2, "baseline": 1.0}, None),
        ([1, 2, 3, 4], {"patience": 3, "mode": "max"}, None),
        ([1, 2, 3, 4], {"patience": 3, "mode": "min"}, 4),
    ],
)
def test_it_stops_where_a_hand_count_says(values: list[float], settings: dict[str, Any], expected: int | None) -> None:
    assert stops_at(values, **settings) == expected


def test_the_name_says_what_is_better_or_it_is_asked() -> None:
    assert stops_at([0.1, 0.2, 0.3], "val_accuracy", patience=1) is None
    assert stops_at([0.3, 0.2, 0.1], "val_map50", patience=1) == 2
    assert stops_at([0.3, 0.2, 0.1], "val_cer", patience=1) is None
    with pytest.raises(ConfigError, match="mode='min' or mode='max'"):
        Monitor("val_zorp")
    assert Monitor("val_zorp", "max").better(2, 1)
    for settings in (
        {"monitor": "loss"},
        {"mode": "least"},
        {"patience": 0},
        {"patience": True},
        {"min_delta": -1.0},
        {"baseline": math.nan},
    ):
        with pytest.raises(ConfigError):
            EarlyStopping(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="did you mean 'val_accuracy'") as caught:
        Monitor("val_acuracy", "max").value({"val_loss": 1.0, "val_accuracy": 0.5})
    assert "val_accuracy, val_loss" in str(caught.value)
    with pytest.raises(ConfigError, match="val_dataset"):
        Monitor("val_loss").value({})


def test_a_run_stops_when_its_validation_gets_worse_and_takes_the_best_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    history: dict[int, torch.Tensor] = {}
    losses: dict[int, float] = {}

    def note(state: Any) -> None:
        history[state.step], losses[state.step] = weights(state.model), state.metrics["val_loss"]

    settings: dict[str, Any] = {
        "train_dataset": toy_batches(2),
        "val_dataset": toy_batches(1, seed=77),  # 8 training sequences: soon learned by heart
        "validate_every": 2,
        "max_steps": 200,
        "learning_rate": 3e-2,
    }
    stopping = EarlyStopping(patience=3, restore_best=True)
    run = trainer(**settings, output_dir=tmp_path, callbacks=[LambdaCallback(on_validation_end=note), stopping])
    result = run.train()
    best = min(losses, key=lambda step: losses[step])
    assert result.steps == best + 6 < 200 and stopping.best_step == best and stopping.best == losses[best]
    assert not result.interrupted and (tmp_path / "bundle").is_dir()
    assert torch.equal(weights(run.model), history[best])
    assert f"best {losses[best]:.6g} at step {best}" in caplog.text


def test_it_goes_on_counting_after_a_resume(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "train_dataset": toy_batches(2),
        "val_dataset": toy_batches(1, seed=77),
        "validate_every": 2,
        "checkpoint_every": 2,
        "max_steps": 200,
        "learning_rate": 3e-2,
    }
    whole = trainer(**settings, output_dir=tmp_path / "whole", callbacks=[EarlyStopping(restore_best=True)])
    expected = whole.train()
    crash = LambdaCallback(on_step_end=lambda state: 1 / 0 if state.step == expected.steps - 1 else None)
    with pytest.raises(RuntimeError):
        trainer(**settings, output_dir=tmp_path / "cut", callbacks=[EarlyStopping(restore_best=True), crash]).train()
    again = trainer(**settings, output_dir=tmp_path / "cut", callbacks=[EarlyStopping(restore_best=True)])
    result = again.train(resume=True)
    assert result.steps == expected.steps and len(result.losses) <= 4
    assert torch.equal(weights(again.model), weights(whole.model))
