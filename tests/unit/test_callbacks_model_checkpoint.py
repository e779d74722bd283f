"""ModelCheckpoint: the sample of the source document, names with fields, best ones, full ones, a disk that refuses."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deepseek.callbacks import EMA, LambdaCallback, ModelCheckpoint
from deepseek.checkpoint import load_checkpoint, load_weights
from deepseek.errors import ConfigError
from deepseek.models.gpt import GPT
from deepseek.train import Trainer
from deepseek.train.callbacks.path_fields import PathFields
from tests.toy_callbacks import FakeRun, begun
from tests.toy_gpt import toy_batches, toy_config
from tests.toy_training import mlp, trainer, weights


def test_the_sample_of_the_source_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = ModelCheckpoint(
        filepath="./checkpoints/epoch_{epoch}", save_weights_only=True, save_freq="epoch", monitor="val_loss"
    )
    history: dict[int, torch.Tensor] = {}
    note = LambdaCallback(on_step_end=lambda state: history.update({state.step: weights(state.model)}))
    run = trainer(callbacks=[checkpoint, note], val_dataset=toy_batches(1, seed=5))
    result = run.train(epochs=3)
    assert sorted(os.listdir("checkpoints")) == [f"epoch_{n}.safetensors" for n in (1, 2, 3)]
    for epoch in (1, 2, 3):
        stored = GPT(toy_config())
        notes = load_weights(stored, f"checkpoints/epoch_{epoch}.safetensors")
        assert torch.equal(weights(stored), history[6 * epoch]) and notes["step"] == str(6 * epoch)
    assert float(notes["val_loss"]) == result.val_loss


def test_every_n_steps_with_the_numbers_of_the_run_in_the_name(tmp_path: Path) -> None:
    state = FakeRun()
    callbacks = begun(
        state,
        ModelCheckpoint(tmp_path / "e{epoch:02d}-s{step:04d}-{val_loss:.2f}", save_weights_only=True, save_freq=4),
    )
    state.metrics = {"val_loss": 1.234}
    for _ in range(13):  # ten batches a pass
        state.do_step(callbacks)
    assert sorted(os.listdir(tmp_path)) == [
        "e01-s0004-1.23.safetensors",
        "e01-s0008-1.23.safetensors",
        "e02-s0012-1.23.safetensors",
    ]


@pytest.mark.parametrize("ema_first", [True, False])
def test_the_best_only_are_the_weights_that_the_validation_measured(tmp_path: Path, ema_first: bool) -> None:
    state = FakeRun(mlp())
    best = ModelCheckpoint(tmp_path / "best", save_weights_only=True, save_best_only=True)
    ema = EMA(0.5)
    callbacks = begun(state, *((ema, best) if ema_first else (best, ema)))
    measured: dict[float, torch.Tensor] = {}
    for loss in (3.0, 2.0, float("nan"), 2.5, 1.5, 1.5):
        state.do_step(callbacks)
        callbacks.on_validation_begin(state)
        measured.setdefault(loss, weights(state.model))
        state.metrics = {"val_loss": loss}
        callbacks.on_validation_end(state)
        stored = mlp()
        stored.load_state_dict(load_file(tmp_path / "best.safetensors"))
        assert best.best is not None and torch.equal(weights(stored), measured[best.best])
    assert best.best == 1.5 and best.last_path == tmp_path / "best.safetensors"
    assert os.listdir(tmp_path) == ["best.safetensors"]


def test_at_an_epochs_end_too_the_file_has_the_averaged_weights(tmp_path: Path) -> None:
    state = FakeRun(mlp())
    ema = EMA(0.5)
    callbacks = begun(state, ModelCheckpoint(tmp_path / "{epoch}", save_weights_only=True), ema)
    state.do_step(callbacks)
    own = weights(state.model)
    callbacks.on_epoch_end(state)
    stored = load_file(tmp_path / "1.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in ema.average.items())
    assert torch.equal(weights(state.model), own) and "1.running_mean" in stored


def test_full_ones_are_asked_for_at_the_end_of_the_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without output_dir"):
        begun(FakeRun(), ModelCheckpoint(tmp_path / "full_{step}", save_freq=2))
    state = FakeRun(output_dir=tmp_path / "run")
    callbacks = begun(state, ModelCheckpoint(tmp_path / "full_{step}", save_freq=2))
    for _ in range(5):
        state.do_step(callbacks)
    assert state.wanted == [tmp_path / "full_2", tmp_path / "full_4"] and os.listdir(tmp_path) == []


def test_a_full_one_can_be_resumed_from(tmp_path: Path) -> None:
    def run(folder: str) -> Trainer:
        callbacks = [ModelCheckpoint(tmp_path / "full_{step}", save_freq=4), EMA(0.9)]
        return trainer(output_dir=tmp_path / folder, callbacks=callbacks)

    whole = run("whole")
    whole.train(max_steps=6)
    state = load_checkpoint(tmp_path / "full_4")
    assert state["step"] == 4 and set(state["callbacks"]) == {"ModelCheckpoint.0", "EMA.0"}
    assert sorted(os.listdir(tmp_path)) == ["full_4", "whole"]
    (tmp_path / "again" / "checkpoints").mkdir(parents=True)
    (tmp_path / "full_4").rename(tmp_path / "again" / "checkpoints" / "step_00000004")
    again = run("again")
    assert len(again.train(max_steps=6, resume=True).losses) == 2
    assert torch.equal(weights(again.model), weights(whole.model))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch_{epok}", "did you mean 'epoch'"),
        ("{}", "the field {}"),
        ("{0}", "the field {0}"),
        ("{epoch.real}", "epoch.real"),
        ("{step!s:{epoch}}", "inside a format"),
        ("{step:.3q}", "ValueError"),
        ("{epoch", "expected '}'"),
        ("{val_loss:d}", "ValueError"),
    ],
)
def test_a_path_that_no_run_can_fill_in_is_refused_at_once(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelCheckpoint(text, save_weights_only=True)
    assert message in str(caught.value)


def test_a_number_the_run_has_not_is_named_at_the_first_save(tmp_path: Path) -> None:
    state = FakeRun()
    callbacks = begun(state, ModelCheckpoint(tmp_path / "{val_acc:.2f}", save_weights_only=True, save_freq=1))
    with pytest.raises(ConfigError, match="validate_every"):
        state.do_step(callbacks)
    state.metrics = {"val_accuracy": 0.5, "val_loss": 1.0}
    with pytest.raises(ConfigError, match="epoch, items, loss, step, val_accuracy, val_loss") as caught:
        state.do_step(callbacks)
    assert "did you mean 'val_accuracy'" in str(caught.value)
    assert PathFields("{val_accuracy}-{loss:.1f}").path(state) == Path("0.5-1.0")


def test_settings_that_contradict_are_refused() -> None:
    for settings, message in (
        ({"filepath": "w.pt", "save_weights_only": True}, "no such file"),
        ({"filepath": "w.safetensors"}, "no such file"),
        ({"filepath": "w", "save_freq": 0}, "save_freq is wrong"),
        ({"filepath": "w", "save_freq": "step"}, "save_freq is wrong"),
        ({"filepath": "w", "save_freq": True}, "save_freq is wrong"),
        ({"filepath": "w", "save_freq": 5, "save_best_only": True}, "no effect"),
        ({"filepath": "w", "monitor": "accuracy"}, "monitor"),
        ({"filepath": "w", "mode": "best"}, "mode"),
    ):
        with pytest.raises(ConfigError, match=message):
            ModelCheckpoint(**settings)  # type: ignore[arg-type]


def test_files_that_overwrite_each_other_are_said_once_and_a_run_without_a_save_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    state = FakeRun()
    callbacks = begun(state, ModelCheckpoint(tmp_path / "e{epoch}", save_weights_only=True, save_freq=2))
    for _ in range(8):
        state.do_step(callbacks)
    callbacks.on_train_end(state)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "ModelCheckpoint writes step 4 over step 2"
    ]
    caplog.clear()
    callbacks = begun(FakeRun(), ModelCheckpoint(tmp_path / "e{epoch}", save_best_only=True, save_weights_only=True))
    callbacks.on_train_end(state)
    assert "saved nothing" in caplog.text and "no validation had a finite val_loss" in caplog.text


def test_a_disk_that_refuses_is_a_warning_and_the_next_save_is_tried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "folder"
    blocked.write_text("a file where the folder should be")
    state = FakeRun()
    checkpoint = ModelCheckpoint(blocked / "s{step}", save_weights_only=True, save_freq=1)
    callbacks = begun(state, checkpoint)
    state.do_step(callbacks)
    assert "no weights of step 1, training goes on" in caplog.text and checkpoint.last_path is None
    blocked.unlink()
    state.do_step(callbacks)
    assert os.listdir(blocked) == ["s2.safetensors"]


def test_the_best_so_far_is_known_after_a_resume(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"val_dataset": toy_batches(1, seed=4), "validate_every": 2, "checkpoint_every": 6}
    first = ModelCheckpoint(tmp_path / "best", save_weights_only=True, save_best_only=True)
    trainer(output_dir=tmp_path / "run", callbacks=[first], **settings).train(max_steps=6)
    second = ModelCheckpoint(tmp_path / "best", save_weights_only=True, save_best_only=True)
    trainer(output_dir=tmp_path / "run", callbacks=[second], **settings).train(max_steps=6, resume=True)
    assert second.best == first.best is not None and second.last_path == first.last_path
