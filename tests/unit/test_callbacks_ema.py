"""The average of the weights, held against its formula written out, by itself and in real runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepseek.bundle import load
from deepseek.callbacks import EMA, EarlyStopping, LambdaCallback
from deepseek.checkpoint.store import list_checkpoints, load_checkpoint
from deepseek.errors import CheckpointError, ConfigError
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.tasks.task import mean_loss
from tests.toy_callbacks import FakeRun, begun
from tests.toy_gpt import toy_batches
from tests.toy_training import mlp, trainer, weights


def history_of(steps: int, **changes: Any) -> tuple[Any, list[Tensor]]:
    """Train without EMA; return the run, and the weights at its beginning and after each step."""
    history: list[Tensor] = []
    note = LambdaCallback(
        on_train_begin=lambda state: history.append(weights(state.model)),
        on_step_end=lambda state: history.append(weights(state.model)),
    )
    run = trainer(max_steps=steps, callbacks=[note], **changes)
    run.train()
    return run, history


def by_formula(history: list[Tensor], decay: float, *, every: int = 1, warmup: bool = True) -> np.ndarray:
    """Return the average as a sum of all weights, each times its share; nothing like the loop of the callback."""
    points = history[::every]
    decays = [min(decay, (1 + n * every) / (10 + n * every)) if warmup else decay for n in range(len(points))]
    shares = [1 - d**every for d in decays]
    total = np.zeros(len(history[0]))
    for n, point in enumerate(points):
        left = np.prod([1 - share for share in shares[n + 1 :]])
        total += point.double().numpy() * left * (shares[n] if n else 1.0)
    return total


@pytest.mark.parametrize(
    ("decay", "every", "warmup"), [(0.9, 1, True), (0.9, 1, False), (0.8, 3, True), (0.0, 2, False)]
)
def test_the_average_is_the_sum_of_all_weights_times_their_shares(decay: float, every: int, warmup: bool) -> None:
    _, history = history_of(12)
    ema = EMA(decay, every=every, warmup=warmup)
    run = trainer(max_steps=12, callbacks=[ema])
    run.train()
    expected = by_formula(history, decay, every=every, warmup=warmup)
    average = torch.cat([value.flatten() for value in ema.average.values()])
    np.testing.assert_allclose(average.numpy(), expected, atol=2e-6)
    assert torch.equal(weights(run.model), average)


def test_weights_of_few_bits_are_averaged_in_float32() -> None:
    model = nn.Linear(3, 3).bfloat16()
    state, ema = FakeRun(model), EMA(0.999, warmup=False)
    callbacks = begun(state, ema)
    start = weights(model).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    for _ in range(20):
        state.step += 1
        callbacks.on_step_end(state)
    average = torch.cat([value.flatten() for value in ema.average.values()])
    expected = weights(model).float() + (start - weights(model).float()) * 0.999**20
    torch.testing.assert_close(average, expected, atol=1e-5, rtol=0)
    before = weights(model)
    callbacks.on_validation_begin(state)
    assert weights(model).dtype == torch.bfloat16 and torch.equal(weights(model), average.bfloat16())
    callbacks.on_validation_end(state)
    assert torch.equal(weights(model), before)
    assert torch.equal(torch.cat([value.flatten() for value in ema.average.values()]), average)


def test_validation_sees_the_average_and_training_does_not() -> None:
    val = toy_batches(2, seed=9)
    plain, history = history_of(8, val_dataset=val, validate_every=4)
    ema = EMA(0.9)
    seen: list[float] = []
    look = LambdaCallback(on_validation_end=lambda state: seen.append(state.metrics["val_loss"]))
    run = trainer(max_steps=8, val_dataset=val, validate_every=4, callbacks=[ema, look])
    result = run.train()
    assert result.losses == plain.result.losses  # bit for bit: the averages never touch training
    assert result.val_loss != plain.result.val_loss
    for steps, value in zip((4, 8), seen, strict=True):
        nn.utils.vector_to_parameters(
            torch.from_numpy(by_formula(history[: steps + 1], 0.9)).float(), plain.model.parameters()
        )
        assert value == pytest.approx(mean_loss(plain.model, val, LanguageModeling()), abs=1e-5)


def test_storage_stays_where_it_is_and_buffers_are_the_models_own() -> None:
    model = mlp()
    state, ema = FakeRun(model), EMA(0.5)
    callbacks = begun(state, ema)
    places = [p.data_ptr() for p in model.parameters()]
    state.do_step(callbacks)
    model.get_buffer("1.running_mean").fill_(3.0)
    own = weights(model)
    callbacks.on_validation_begin(state)
    assert [p.data_ptr() for p in model.parameters()] == places and not torch.equal(weights(model), own)
    assert float(model.get_buffer("1.running_mean")[0]) == 3.0
    callbacks.on_exception(state)  # a validation that failed: the run is saved with the weights of training
    assert torch.equal(weights(model), own)


def test_the_bundle_holds_the_average_and_the_last_checkpoint_the_weights_of_training(tmp_path: Path) -> None:
    _, history = history_of(8)
    ema = EMA(0.9)
    trainer(max_steps=8, checkpoint_every=5, output_dir=tmp_path, callbacks=[ema]).train()
    expected = by_formula(history, 0.9)
    model = load(tmp_path / "bundle").model
    np.testing.assert_allclose(weights(model).numpy(), expected, atol=2e-6)
    saved = load_checkpoint(list_checkpoints(tmp_path / "checkpoints")[0])
    names = [name for name, _ in model.named_parameters()]
    stored = torch.cat([saved["model"][name].flatten() for name in names])
    assert torch.equal(stored, history[-1])


def test_a_resumed_run_has_the_same_average_to_the_last_bit(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"val_dataset": toy_batches(1, seed=4), "validate_every": 2, "epochs": 2}
    whole = trainer(output_dir=tmp_path / "whole", callbacks=[EMA(0.9, every=2)], **settings)
    expected = whole.train()
    cut = trainer(output_dir=tmp_path / "cut", callbacks=[EMA(0.9, every=2)], **settings, checkpoint_every=5)
    stop = LambdaCallback(on_step_end=lambda state: 1 / 0 if state.step == 8 else None)
    with pytest.raises(RuntimeError):
        trainer(
            output_dir=tmp_path / "cut", callbacks=[EMA(0.9, every=2), stop], checkpoint_every=5, **settings
        ).train()
    assert list_checkpoints(tmp_path / "cut" / "checkpoints")[0].name == "step_00000008"  # an error loses no step
    result = cut.train(resume=True)
    assert result.steps == 12 and result.val_loss == expected.val_loss
    assert torch.equal(weights(cut.model), weights(whole.model))
    rows = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "val_loss" in row] == [2, 4, 6, 10, 12]  # the error came before that of 8


def test_a_run_set_back_to_a_checkpoint_has_its_average_set_back() -> None:
    state, ema = FakeRun(), EMA(0.5)
    callbacks = begun(state, ema)
    state.do_step(callbacks)
    saved = {name: value.clone() for name, value in ema.state_dict()["average"].items()}
    state.do_step(callbacks)
    ema.load_state_dict({"average": saved})
    assert all(torch.equal(ema.average[name], value) for name, value in saved.items())
    state.do_step(callbacks)
    assert not any(torch.equal(ema.average[name], value) for name, value in saved.items())


def test_the_best_weights_win_over_the_latest_average_whatever_the_order() -> None:
    for stopping_first in (True, False):
        state = FakeRun()
        ema, stopping = EMA(0.9), EarlyStopping(patience=9, restore_best=True)
        callbacks = begun(state, *((stopping, ema) if stopping_first else (ema, stopping)))
        kept = None
        for loss in (3.0, 1.0, 2.0):
            state.do_step(callbacks)
            state.validate(callbacks, val_loss=loss)
            if loss == 1.0:
                kept = torch.cat([value.flatten() for value in ema.average.values()])
        callbacks.on_train_end(state)
        assert kept is not None and torch.equal(weights(state.model), kept)


def test_wrong_settings_and_the_average_of_another_model_are_refused() -> None:
    for settings in ({"decay": 1.0}, {"decay": -0.1}, {"decay": float("nan")}, {"every": 0}):
        with pytest.raises(ConfigError, match="EMA"):
            EMA(**settings)
    saved = begun(FakeRun(nn.Linear(2, 2)), EMA()).state_dict()
    with pytest.raises(CheckpointError, match="another model"):
        other = EMA()
        other.load_state_dict(saved["EMA.0"])
        begun(FakeRun(nn.Linear(3, 2), step=4), other)
