"""The Trainer: data of every kind, plans and rates, optimizers as given, output folders."""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, TensorDataset

import deepseek as ds
from deepseek.bundle import load
from deepseek.data import Loader, Tokenizer
from deepseek.errors import ConfigError, DataError, TokenizerError
from deepseek.models.gpt import GPT, GPTConfig
from deepseek.optim.schedules import learning_rate
from deepseek.tasks.supervised import Supervised
from deepseek.train import MixedPrecisionTrainer, Trainer
from deepseek.train.batches import as_stream
from deepseek.train.config import TrainConfig
from deepseek.train.interrupt import graceful_interrupt
from deepseek.train.result import TrainResult
from tests.toy_gpt import Batch, toy_batches, toy_config, toy_gpt, write_text
from tests.toy_training import QUIET, Samples, circles, mlp, pairs, trainer, weights


def test_a_language_model_learns_what_follows_what() -> None:
    run = trainer(val_dataset=toy_batches(2, seed=9))
    result = run.train(epochs=25)
    assert result.steps == len(result.losses) == 150 and result.items == 150 * 48
    assert result.losses[0] == pytest.approx(math.log(48), abs=0.2)
    assert np.mean(result.losses[-6:]) < 2.2 and result.val_loss is not None and result.val_loss < 3.3
    assert isinstance(run.model, GPT) and not run.model.training
    assert result.items_per_second > 0 and result.skipped_steps == 0 and not result.interrupted


def test_any_network_with_any_loss_learns() -> None:
    model = mlp()
    result = trainer(model=model, train_dataset=pairs(), task=Supervised(nn.CrossEntropyLoss())).train(epochs=60)
    inputs, targets = circles()
    assert result.items == 60 * 160
    assert float((model(inputs).argmax(1) == targets).float().mean()) > 0.85


def test_lists_iterables_and_loaders_of_the_same_batches_give_the_same_weights() -> None:
    inputs, targets = circles()

    class Again:
        def __iter__(self) -> Iterator[Any]:
            return iter(pairs())

    kinds: list[Any] = [pairs(), tuple(pairs()), DataLoader(TensorDataset(inputs, targets), 16), Again()]
    found = []
    for data in kinds:
        model = mlp()
        trainer(model=model, train_dataset=data, task=Supervised(nn.CrossEntropyLoss())).train(epochs=2)
        found.append(weights(model))
    assert all(torch.equal(other, found[0]) for other in found[1:])


def test_a_loader_is_read_in_its_own_order_and_its_thread_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(train_dataset=Loader(Samples(), 4, seed=3))
    run.train(epochs=2)
    by_hand = trainer(
        train_dataset=[batch for _, batch in zip(range(12), Loader(Samples(), 4, seed=3).iterate(0), strict=False)]
    )
    by_hand.train(epochs=1)
    assert torch.equal(weights(run.model), weights(by_hand.model))
    assert not [thread for thread in threading.enumerate() if thread.name == "deepseek-loader"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "no batch to train on"),
        ((batch for batch in toy_batches(2)), "read only once"),
        (iter(toy_batches(2)), "read only once"),
        (7, "unknown kind"),
        (Samples(), "unknown kind"),
        (range(0), "gave no batch"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(data: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        trainer(train_dataset=data, max_steps=1).train()


def test_an_endless_iterable_is_fine_with_a_number_of_steps() -> None:
    class Endless:
        def __iter__(self) -> Iterator[Batch]:
            while True:
                yield from toy_batches(2)

    assert trainer(train_dataset=Endless()).train(max_steps=5).steps == 5


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 6),
        ({"epochs": 3}, 18),
        ({"max_steps": 4}, 4),
        ({"epochs": 2, "max_steps": 100}, 12),
        ({"epochs": 2, "max_steps": 5}, 5),
        ({"epochs": 2, "gradient_accumulation_steps": 4}, 3),
        ({"gradient_accumulation_steps": 8}, 1),
    ],
)
def test_the_number_of_steps(settings: dict[str, int], steps: int) -> None:
    assert trainer(**settings).train().steps == steps


def test_a_time_budget_is_kept_and_at_least_ten_steps_are_done() -> None:
    result = trainer(time_budget=1e-6).train()
    assert 1 <= result.steps <= 10
    short = trainer(time_budget=1.0).train()
    assert short.steps > result.steps and short.seconds < 10


def test_metrics_have_rate_norm_speed_and_validation(tmp_path: Path) -> None:
    run = trainer(output_dir=tmp_path / "run", val_dataset=toy_batches(1, seed=5), log_every=2, validate_every=3)
    result = run.train(epochs=2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in rows if "val_loss" in row] == [3, 6, 9, 12]
    assert steps[0]["loss"] == pytest.approx(np.mean(result.losses[:2]))
    assert steps[-1]["tokens"] == 12 * 48 and steps[-1]["tokens_per_second"] > 0 and steps[0]["grad_norm"] > 0
    wanted = learning_rate(3, peak=1e-2, total_steps=12, warmup_steps=1, schedule="cosine", floor=0.1)
    assert steps[1]["lr"] == pytest.approx(wanted)
    assert rows[-1]["val_loss"] == result.val_loss


def rates_of(run: Trainer, steps: int, **settings: Any) -> list[list[float]]:
    """Return the rates of each parameter group in each step."""
    seen: list[list[float]] = []

    def watch(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        seen.append([float(group["lr"]) for group in optimizer.param_groups])

    handle = register_optimizer_step_pre_hook(watch)
    try:
        run.train(max_steps=steps, **settings)
    finally:
        handle.remove()
    return seen


def test_the_peak_of_the_schedule_is_the_optimizers_own_rate() -> None:
    constant = {"schedule": "constant", "warmup_steps": 0, "learning_rate": 7e-3}
    model = toy_gpt()
    ready = torch.optim.SGD(
        [{"params": model.blocks.parameters(), "lr": 0.5}, {"params": model.norm.parameters()}], lr=0.25
    )
    cases: list[tuple[dict[str, Any], list[float]]] = [
        ({}, [7e-3, 7e-3]),
        ({"optimizer": torch.optim.SGD}, [7e-3]),
        ({"optimizer": ds.optim.SGD}, [7e-3]),
        ({"optimizer": ds.optim.AdamW(lr=5e-4)}, [5e-4]),
        ({"optimizer": ds.optim.AdamW(weight_decay=0.0)}, [7e-3]),
        ({"optimizer": ready, "model": model}, [0.5, 0.25]),
        ({"optimizer": ready, "model": model}, [0.5, 0.25]),
    ]
    for changes, wanted in cases:
        assert rates_of(trainer(**changes, **constant), 2) == [wanted] * 2, changes
    falling = rates_of(trainer(optimizer=ds.optim.AdamW(lr=5e-4), warmup_steps=2), 6)
    assert [rate for (rate,) in falling[:3]] == pytest.approx([2.5e-4, 5e-4, 5e-4]) and falling[-1][0] < 2e-4
    scaled = rates_of(trainer(optimizer=ready, model=model, warmup_steps=2), 6)
    assert all(first == pytest.approx(2 * second) for first, second in scaled)


def test_the_default_optimizer_decays_matrices_only() -> None:
    run = trainer(weight_decay=0.3)
    optimizer = run._make_optimizer(toy_gpt(), TrainConfig(weight_decay=0.3))
    for group in optimizer.param_groups:
        assert {p.dim() >= 2 for p in group["params"]} == {group["weight_decay"] == 0.3}


def test_an_optimizer_of_another_model_is_refused() -> None:
    stranger = torch.optim.SGD(toy_gpt().parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="parameters of another model"):
        trainer(optimizer=stranger).train()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": toy_gpt(), "model_config": toy_config()}, "found:  both"),
        ({"model": nn.Sequential(), "model_config": toy_config()}, "found:  both"),
        ({"model_config": None}, "found:  neither"),
        ({"train_dataset": None}, "needs data"),
        ({"learning_rates": 1.0}, "did you mean 'learning_rate'"),
        ({"learning_rate": -1.0}, "greater than 0"),
        ({"batch_size": 0}, "batch_size"),
        ({"optimizer": "adam"}, "'adamw' or 'muon'"),
        ({"precision": "fp8", "device": "cpu"}, "Hopper"),
        ({"precision": "fp4"}, "'fp32_fast' or 'fp8'"),
        ({"memory_budget": "8XB"}, "a size such as 8GB"),
        ({"device": "cuda:99"}, "no device 'cuda:99'"),
        ({"device": "gpu"}, "unknown device"),
        ({"model_config": "gpt2-smal"}, "did you mean 'gpt2-small'"),
        ({"model_config": TrainConfig()}, "not a model's config"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    settings = {
        "model_config": toy_config(),
        "train_dataset": toy_batches(1),
        "learning_rate": 1e-2,
        **QUIET,
        **changes,
    }
    with pytest.raises(ConfigError, match=words):
        Trainer(**settings).train()


def test_a_shuffling_data_loader_has_another_order_in_each_epoch_and_the_same_in_each_run() -> None:
    def orders(seed: int) -> list[list[int]]:
        stream = as_stream(DataLoader(list(range(8)), batch_size=None, shuffle=True), seed).iterate(0)
        return [[int(next(stream)) for _ in range(8)] for _ in range(3)]

    state = torch.get_rng_state()
    first = orders(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert orders(0) == first != orders(1)
    assert first[0] != first[1] != first[2] and all(sorted(order) == list(range(8)) for order in first)
    stream = as_stream(DataLoader(list(range(8)), batch_size=None, shuffle=True), 0)
    assert [int(next(stream.iterate(position))) for position in range(24)] == sum(first, [])


def test_weights_do_not_depend_on_what_was_drawn_before_but_on_the_seed() -> None:
    found = []
    for seed, draws in ((0, 0), (0, 5), (1, 0)):
        torch.rand(draws)
        run = trainer(model_config=toy_config(dropout=0.2), seed=seed)
        run.train(max_steps=3)
        found.append(weights(run.model))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_measuring_before_the_first_step_leaves_no_trace() -> None:
    found = []
    for settings in ({"compile": False}, {"compile": "auto"}):
        model = mlp()
        trainer(model=model, train_dataset=pairs(), task=Supervised(nn.CrossEntropyLoss()), **settings).train(epochs=1)
        found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_training_from_a_text_file_leaves_tokenizer_and_bundle(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.jsonl")
    config = GPTConfig(vocab_size=300, max_length=16, num_layers=1, d_model=16, num_heads=2)
    settings = {"model_config": config, "train_dataset": str(text), "batch_size": 4, "output_dir": tmp_path / "run"}
    run = trainer(**settings)
    result = run.train(max_steps=30)
    assert result.val_loss is not None and np.mean(result.losses[-5:]) < result.losses[0] - 0.5
    bundle = load(tmp_path / "run" / "bundle")
    assert run.tokenizer is not None and bundle.tokenizer is not None
    assert bundle.tokenizer.sha256 == run.tokenizer.sha256 == Tokenizer.load(tmp_path / "run" / "tokenizer.json").sha256
    assert torch.equal(weights(bundle.model), weights(run.model))
    assert bundle.generate("the cat", max_new_tokens=4)
    # other text now: a resumed run still reads with the tokenizer it began with
    write_text(text, seed=8)
    resumed = trainer(**settings)
    resumed.train(max_steps=32, resume=True)
    assert resumed.tokenizer is not None and resumed.tokenizer.sha256 == run.tokenizer.sha256
    other = Tokenizer.train(["something else entirely"] * 3, 265)
    with pytest.raises(TokenizerError, match="another tokenizer"):
        trainer(**settings, tokenizer=other).train(max_steps=34, resume=True)


def test_a_vocabulary_larger_than_the_text_gives_is_said_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = write_text(tmp_path / "text.jsonl")
    config = GPTConfig(vocab_size=5000, max_length=16, num_layers=1, d_model=16)
    run = trainer(model_config=config, train_dataset=text, batch_size=4)
    run.train(max_steps=1)
    assert "tokens, not 5000" in caplog.text and run.tokenizer is not None
    assert run.output_dir is not None and run.output_dir.parent == Path("runs")
    with pytest.raises(TokenizerError, match="more tokens than the model"):
        trainer(model_config=config.replace(vocab_size=270), train_dataset=text, tokenizer=run.tokenizer).train()
    with pytest.raises(DataError, match="does not fill one batch"):
        trainer(model_config=config, train_dataset=text, batch_size=100_000, output_dir=tmp_path / "x").train()
    with pytest.raises(ConfigError, match="needs a language model"):
        trainer(model=mlp(), train_dataset=text, output_dir=tmp_path / "y").train()


def test_models_that_are_none_of_ours_train_with_an_output_folder_but_leave_no_bundle(tmp_path: Path) -> None:
    run = trainer(model=mlp(), train_dataset=pairs(), task=Supervised(nn.CrossEntropyLoss()), output_dir=tmp_path)
    run.train(max_steps=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "metrics.jsonl"]


def test_tensorboard_events_are_written_beside_the_metrics(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trainer(output_dir=tmp_path, tensorboard=True).train(max_steps=2)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_mixed_precision_in_both_forms_trains_like_the_plain_loop(caplog: pytest.LogCaptureFixture) -> None:
    found = []
    for settings in (
        {"fp16_params": {"enable": True, "loss_scale": 128}},
        {"scaler": torch.amp.GradScaler("cpu", init_scale=64.0), "fp16_enable": True},
        {"fp16_params": {"enable": False}},
    ):
        model = toy_gpt()
        front = MixedPrecisionTrainer(model, optimizer=ds.optim.AdamW(lr=1e-3), **settings)
        result = front.train(toy_batches(3), epochs=2, compile=False)
        assert result.steps == 6 and result.skipped_steps == 0 and bool(weights(model).isfinite().all())
        found.append(weights(model))
    assert caplog.text.count("float16 is slow") == 2
    torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=0)
    torch.testing.assert_close(found[0], found[2], atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fp16_params": {"enable": True, "scale": 128}}, "unknown key in fp16_params"),
        ({"fp16_params": {"enable": True, "loss_scal": 128}}, "did you mean 'loss_scale'"),
        ({"fp16_params": {"enable": True, "loss_scale": 0}}, "out of range"),
        ({"fp16_params": {"enable": True, "loss_scale": True}}, "out of range"),
        ({"fp16_params": {"enable": 1}}, "both on and off"),
        ({"fp16_params": {"enable": True}, "fp16_enable": False}, "both on and off"),
        ({"fp16_params": {"loss_scale": 8}, "scaler": torch.amp.GradScaler("cpu")}, "two loss scales"),
    ],
)
def test_contradictions_in_mixed_precision_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MixedPrecisionTrainer(toy_gpt(), **settings)


def test_mixed_precision_has_its_own_format_and_device() -> None:
    for name in ("precision", "device"):
        with pytest.raises(ConfigError, match=f"'{name}' has no effect"):
            MixedPrecisionTrainer(toy_gpt()).train(toy_batches(1), **{name: "fp32"})


def test_progress_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(progress=True).train(max_steps=3)
    assert "3/3" in capsys.readouterr().err
    trainer(progress="auto").train(max_steps=3)
    assert capsys.readouterr().err == ""


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler imports deprecated parts of torch
def test_compiled_training_gives_the_losses_of_eager_training(caplog: pytest.LogCaptureFixture) -> None:
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler: torch.compile can't run")
    caplog.set_level(logging.INFO, logger="deepseek.train")
    config = toy_config(num_layers=1)
    eager = trainer(model_config=config).train(max_steps=4)
    compiled = trainer(model_config=config, compile=True).train(max_steps=4)
    assert compiled.compiled and compiled.compile_seconds > 0 and not eager.compiled
    assert compiled.losses == pytest.approx(eager.losses, rel=1e-4)


def test_what_cannot_be_compiled_runs_eagerly_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        def fail(*args: Any) -> None:
            raise RuntimeError("the compiler gave up\nlong story")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    result = trainer(compile=True).train(max_steps=3)
    if "no C++ compiler" not in result.compile_reason:
        assert "compiling failed: the compiler gave up" in result.compile_reason
        assert "training runs eagerly" in caplog.text
    assert result.steps == 3 and not result.compiled


def test_one_signal_is_a_wish_and_two_are_an_order() -> None:
    before = signal.getsignal(signal.SIGINT)
    with graceful_interrupt() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


def test_training_works_outside_the_main_thread() -> None:
    results: list[TrainResult] = []
    thread = threading.Thread(target=lambda: results.append(trainer().train(max_steps=2)))
    thread.start()
    thread.join()
    assert results[0].steps == 2
