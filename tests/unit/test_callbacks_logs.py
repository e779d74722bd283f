"""Callbacks that write: rates, norms, tables, events, texts, times; and the log of metrics itself."""

from __future__ import annotations

import csv
import json
import logging
import math
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deepseek.callbacks import (
    CSV,
    EMA,
    GradientNorm,
    LambdaCallback,
    LearningRateMonitor,
    SampleGenerations,
    TensorBoard,
    Timer,
)
from deepseek.data import Tokenizer
from deepseek.errors import ConfigError, MissingExtraError
from deepseek.models.gpt import GPT
from deepseek.train.metrics_log import MetricsLog
from tests.toy_callbacks import FakeRun, begun
from tests.toy_gpt import toy_batches, toy_config, toy_gpt, write_text
from tests.toy_training import mlp, trainer


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def crash_at(step: int) -> LambdaCallback:
    return LambdaCallback(on_step_end=lambda state: 1 / 0 if state.step == step else None)


def test_the_rates_of_all_groups_are_logged() -> None:
    model = mlp()
    state = FakeRun(model)
    groups = [
        {"params": list(model[0].parameters()), "lr": 0.5, "name": "first"},
        {"params": list(model[4].parameters())},
    ]
    state.optimizer = torch.optim.SGD(groups, lr=0.25, weight_decay=0.1)
    callbacks = begun(state, LearningRateMonitor(every=2, weight_decay=True))
    for _ in range(3):
        state.do_step(callbacks)
    assert state.logged == [
        {"step": 2, "lr/first": 0.5, "weight_decay/first": 0.1, "lr/1": 0.25, "weight_decay/1": 0.1}
    ]
    with pytest.raises(ConfigError):
        LearningRateMonitor(0)


@pytest.mark.parametrize("depth", [None, 1, 3])
def test_the_norms_are_those_of_the_gradients_before_clipping(tmp_path: Path, depth: int | None) -> None:
    found: list[float] = []

    def note(state: Any) -> None:
        if state.step == 1:  # in the second step
            found.extend(float(p.grad.norm()) for p in state.model.parameters())

    norms = GradientNorm(every=2, depth=depth)
    trainer(
        output_dir=tmp_path, callbacks=[norms, LambdaCallback(on_gradients=note)], max_grad_norm=1e-3, log_every=1
    ).train(max_steps=3)
    logged = rows(tmp_path / "metrics.jsonl")
    [row] = [row for row in logged if any(name.startswith("grad_norm/") for name in row)]
    layers = {name: value for name, value in row.items() if name != "step"}
    assert row["step"] == 2
    total = math.sqrt(sum(value * value for value in layers.values()))
    assert total == pytest.approx(math.sqrt(sum(value * value for value in found)), rel=1e-5)
    assert total == pytest.approx(
        next(row["grad_norm"] for row in logged if row["step"] == 2 and "loss" in row), rel=1e-5
    )
    names = [name for name, _ in GPT(toy_config()).named_parameters()]
    assert set(layers) == {f"grad_norm/{'.'.join(name.split('.')[:depth])}" for name in names}


def test_a_table_has_a_row_for_every_n_steps_and_each_validation_and_goes_on_after_a_resume(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "val_dataset": toy_batches(1, seed=4),
        "validate_every": 4,
        "checkpoint_every": 5,
        "max_steps": 9,
    }
    whole = trainer(output_dir=tmp_path / "whole", callbacks=[CSV(every=2)], **settings).train()
    with pytest.raises(RuntimeError):
        trainer(output_dir=tmp_path / "cut", callbacks=[CSV(every=2), crash_at(7)], **settings).train()
    with open(tmp_path / "cut" / "metrics.csv", "a") as handle:
        handle.write("10,1.5,")  # cut short by a kill
    trainer(output_dir=tmp_path / "cut", callbacks=[CSV(every=2)], **settings).train(resume=True)
    first, second = table(tmp_path / "whole" / "metrics.csv"), table(tmp_path / "cut" / "metrics.csv")
    assert [row["step"] for row in first] == ["2", "4", "4", "6", "8", "8", "9", "9"]
    assert float(first[-1]["val_loss"]) == whole.val_loss and first[0]["val_loss"] == ""
    for row in (*first, *second):
        del row["seconds"]
    assert first == second


def test_a_table_is_not_written_over_another_file_or_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("name,age\nanna,7\n")
    with pytest.raises(ConfigError, match="no table of a run"):
        begun(FakeRun(), CSV(path))
    assert path.read_text() == "name,age\nanna,7\n"
    with pytest.raises(ConfigError, match="nowhere"):
        begun(FakeRun(), CSV())
    with pytest.raises(ConfigError, match="every"):
        CSV(every=0)


def test_a_full_disk_is_a_warning_once_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = FakeRun(output_dir=tmp_path)
    table_callback = CSV(every=1)
    callbacks = begun(state, table_callback)
    log = MetricsLog(tmp_path, tensorboard=False, from_step=0)
    for writer in (table_callback, log._lines):
        assert writer._file is not None
        writer._file.close()
        writer._file = open("/dev/full", "w", buffering=1)  # type: ignore[assignment]  # noqa: SIM115
    for _ in range(3):
        state.do_step(callbacks)
        log.log({"loss": 1.0}, state.step)
    callbacks.close()
    log.close()
    assert [record.getMessage().split(" is ")[1] for record in caplog.records] == [
        "not complete: No space left on device"
    ] * 2


def events(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loaded = accumulator.EventAccumulator(str(folder))
    loaded.Reload()
    return loaded


def test_tensorboard_gets_every_step_histograms_settings_and_validations(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = trainer(
        output_dir=tmp_path,
        callbacks=[TensorBoard(histograms=3)],
        val_dataset=toy_batches(1, seed=4),
        validate_every=3,
    )
    result = run.train(max_steps=6)
    found = events(tmp_path / "tensorboard" / "callback")
    scalars = [(event.step, event.value) for event in found.Scalars("loss")]
    assert scalars == [(step, pytest.approx(loss)) for step, loss in enumerate(result.losses, 1)]
    assert [event.step for event in found.Scalars("val_loss")] == [3, 6]
    assert found.Scalars("val_loss")[-1].value == pytest.approx(result.val_loss)
    assert run.model is not None
    names = {f"weights/{name}" for name, _ in run.model.named_parameters()}
    assert set(found.Tags()["histograms"]) == names


def test_tensorboard_missing_is_said_when_the_callback_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match="tensorboard"):
        TensorBoard()


def test_tensorboard_wants_a_place_and_sensible_steps() -> None:
    pytest.importorskip("tensorboard")
    with pytest.raises(ConfigError, match="nowhere"):
        begun(FakeRun(), TensorBoard())
    with pytest.raises(ConfigError, match="histograms"):
        TensorBoard("logs", histograms=0)


def test_samples_are_written_and_leave_the_run_as_it_was(tmp_path: Path) -> None:
    path = write_text(tmp_path / "text.jsonl")
    settings: dict[str, Any] = {
        "model_config": toy_config(vocab_size=300, dropout=0.1),
        "train_dataset": path,
        "max_steps": 6,
        "batch_size": 2,
    }
    plain = trainer(**settings, output_dir=tmp_path / "plain").train()
    prompts = ["the cat", "a dog"]
    samples = SampleGenerations(prompts, every=3, max_new_tokens=5, do_sample=True, temperature=1.5)
    run = trainer(**settings, output_dir=tmp_path / "run", callbacks=[samples])
    assert run.train().losses == plain.losses  # dropout would differ if a random number had been drawn
    found = rows(tmp_path / "run" / "samples.jsonl")
    assert [(row["step"], row["prompt"]) for row in found] == [(s, prompt) for s in (3, 6) for prompt in prompts]
    tokenizer = Tokenizer.load(tmp_path / "run" / "tokenizer.json")
    assert run.model is not None
    ids = torch.tensor([tokenizer.encode("the cat")])
    sampled = run.model.generate(
        ids, max_new_tokens=5, do_sample=True, temperature=1.5, seed=0, eos_id=tokenizer.eos_id
    )
    assert found[2]["text"] == tokenizer.decode(sampled[0, ids.shape[1] :].tolist())


def test_samples_are_of_the_averaged_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = Tokenizer.train(["the cat sleeps at home. " * 9], 280, allow_smaller=True)
    model = toy_gpt(vocab_size=280).train()
    state = FakeRun(model)
    samples = SampleGenerations(["the"], tokenizer, every=1, max_new_tokens=4)
    ema = EMA(0.99, warmup=False)
    callbacks = begun(state, ema, samples)
    ids = torch.tensor([tokenizer.encode("the")])
    expected = tokenizer.decode(model.generate(ids, max_new_tokens=4)[0, ids.shape[1] :].tolist())
    caplog.set_level(logging.INFO)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()  # far from the average, which is 0.98 of what it was
    state.step = 1
    callbacks.on_step_end(state)
    assert caplog.messages == [f"step 1: the -> {expected}"] and model.training


def test_prompts_are_checked_before_the_first_step(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a b c"], 261, allow_smaller=True)
    for wrong in ("the cat", [], [""], [3]):
        with pytest.raises(ConfigError, match="prompts"):
            SampleGenerations(wrong, tokenizer)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="every"):
        SampleGenerations(["a"], tokenizer, every=0)
    with pytest.raises(ConfigError, match="top_q"):
        SampleGenerations(["a"], tokenizer, top_q=1)
    with pytest.raises(ConfigError, match="longer than the model's context"):
        begun(FakeRun(toy_gpt()), SampleGenerations(["a" * 20], tokenizer, max_new_tokens=10))
    with pytest.raises(ConfigError, match="tokenizer"):
        begun(FakeRun(nn.Linear(1, 1), output_dir=tmp_path), SampleGenerations(["a"]))


def test_a_timer_stops_the_run_and_goes_on_counting() -> None:
    now = [1000.0]
    timer = Timer("1m30s", clock=lambda: now[0])
    state = FakeRun()
    callbacks = begun(state, timer)
    for _ in range(10):
        now[0] += 6
        state.do_step(callbacks)
    callbacks.on_epoch_end(state)
    assert state.logged == [{"step": 10, "time/epoch_seconds": 60.0, "time/step_seconds": 6.0}]
    saved = json.loads(json.dumps(callbacks.state_dict()["Timer.0"]))
    callbacks.close()
    now[0] = 5.0  # another process, whose clock begins elsewhere
    again = Timer("1m30s", clock=lambda: now[0])
    again.load_state_dict(saved)
    state.stop_reason = None
    callbacks = begun(state, again)
    for _ in range(4):
        now[0] += 7
        state.do_step(callbacks)
        assert state.stop_reason is None
    now[0] += 2
    state.do_step(callbacks)
    assert state.stop_reason == "the 90 seconds of the timer are over" and again.elapsed == 90.0
    callbacks.on_epoch_end(state)
    assert again.epoch_seconds == [60.0, 30.0]


def test_durations_are_read_in_all_their_forms() -> None:
    for duration in (5400, "1h30m", "5400s", "90m", "1h 29m 60.0s", timedelta(hours=1.5)):
        assert Timer(duration).stop_after == 5400  # type: ignore[arg-type]
    for wrong in (0, -1, "", "soon", "1.5h", "30", float("nan"), float("inf"), timedelta(0)):
        with pytest.raises(ConfigError, match="stop_after"):
            Timer(wrong)  # type: ignore[arg-type]


def test_a_run_ends_when_its_time_is_over(tmp_path: Path) -> None:
    ticks = iter(range(1_000_000))
    run = trainer(output_dir=tmp_path, callbacks=[Timer(25, clock=lambda: float(next(ticks)))])
    result = run.train(max_steps=500)
    assert result.steps < 30 and not result.interrupted and (tmp_path / "bundle").is_dir()


def test_the_log_of_metrics_cuts_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, tensorboard=False, from_step=0)
    for step in range(1, 6):
        log.log({"loss": step if step != 3 else math.nan, "text": 1}, step)
    log.close()
    path = tmp_path / "metrics.jsonl"
    before = path.stat().st_mtime_ns, path.read_text()
    MetricsLog(tmp_path, tensorboard=False, from_step=5).close()
    assert (path.stat().st_mtime_ns, path.read_text()) == before  # nothing to cut, nothing written
    with open(path, "a") as handle:
        handle.write('{"step": 3, "loss": 1')  # cut short by a kill
    log = MetricsLog(tmp_path, tensorboard=False, from_step=3)
    log.log({"loss": math.inf}, 4)
    log.close()
    assert [(row["step"], row["loss"]) for row in rows(path)] == [(1, 1), (2, 2), (3, None), (4, None)]
