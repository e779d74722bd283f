"""Training stopped and gone on with: exact resume, checkpoints kept, damaged or foreign ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from deepseek.checkpoint.store import list_checkpoints, load_checkpoint
from deepseek.data import Loader
from deepseek.errors import CheckpointError, ConfigError, NonFiniteLossError
from deepseek.train import Trainer
from tests.toy_gpt import toy_batches, toy_config
from tests.toy_training import Samples, trainer, weights


@pytest.mark.parametrize("kind", ["list", "iterable", "shuffled", "loader"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_stopped_run_goes_on_as_if_it_never_stopped(tmp_path: Path, kind: str, dropout: float) -> None:
    data: Any = {
        "list": toy_batches(6),
        "iterable": DataLoader(toy_batches(6), batch_size=None),
        "shuffled": DataLoader(toy_batches(6), batch_size=None, shuffle=True),
        "loader": Loader(Samples(), 4, seed=1),
    }[kind]
    settings: dict[str, Any] = {
        "model_config": toy_config(dropout=dropout),
        "train_dataset": data,
        "val_dataset": toy_batches(1, seed=4),
        "max_steps": 10,
        "checkpoint_every": 7,
        "gradient_accumulation_steps": 2,
    }
    whole = trainer(output_dir=tmp_path / "whole", **settings)
    result = whole.train()
    stopped = trainer(output_dir=tmp_path / "stopped", **settings)
    with pytest.raises(NonFiniteLossError):
        break_after(stopped, 9)
    rest = trainer(output_dir=tmp_path / "stopped", **settings)
    resumed = rest.train(resume=True)
    assert resumed.steps == 10 and resumed.losses == result.losses[7:] and resumed.val_loss == result.val_loss
    assert torch.equal(weights(rest.model), weights(whole.model))
    steps = [json.loads(line) for line in (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "loss" in row] == [10] and steps[-1].get("val_loss") == result.val_loss
    assert [row["tokens"] for row in steps if "loss" in row] == [10 * 2 * 48]


def test_a_run_with_muon_learns_and_goes_on_as_if_it_never_stopped(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optimizer": "muon", "checkpoint_every": 7, "epochs": 8}
    whole = trainer(output_dir=tmp_path / "whole", **settings)
    result = whole.train()
    assert result.losses[-1] < result.losses[0] - 0.5
    with pytest.raises(NonFiniteLossError):  # three optimizers take a step: Muon, AdamW, and the one around them
        break_after(trainer(output_dir=tmp_path / "stopped", **settings), 3 * 16)
    rest = trainer(output_dir=tmp_path / "stopped", **settings)
    assert rest.train(resume=True).losses == result.losses[14:]
    assert torch.equal(weights(rest.model), weights(whole.model))


def break_after(run: Trainer, steps: int) -> None:
    """Train, and fail as a crash would after `steps` steps."""
    done = 0

    def count(*_: Any) -> None:
        nonlocal done
        done += 1
        if done > steps:
            raise NonFiniteLossError("a crash")

    handle = register_optimizer_step_pre_hook(count)
    try:
        run.train()
    finally:
        handle.remove()


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    run = trainer(output_dir=tmp_path / "run")
    first = run.train(max_steps=6)
    again = trainer(output_dir=tmp_path / "run").train(max_steps=6, resume=True)
    assert again.steps == 6 and again.losses == [] and first.steps == 6
    longer = trainer(output_dir=tmp_path / "run").train(max_steps=9, resume=True)
    assert longer.steps == 9 and len(longer.losses) == 3
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")][0] == "step_00000009"


def test_a_new_run_does_not_mix_with_an_older_one(tmp_path: Path) -> None:
    trainer(output_dir=tmp_path / "run").train(max_steps=3)
    with pytest.raises(ConfigError, match="holds a run already"):
        trainer(output_dir=tmp_path / "run").train(max_steps=3)
    state = load_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[0])
    assert state["step"] == 3


def test_nothing_to_resume_is_an_error_and_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no output folder"):
        trainer().train(resume=True)
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        trainer(output_dir=tmp_path / "none").train(resume=True)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_model_is_refused_and_kept(tmp_path: Path) -> None:
    trainer(output_dir=tmp_path / "run").train(max_steps=2)
    for changes in ({"d_model": 32}, {"num_layers": 3}):
        with pytest.raises(CheckpointError, match="another model"):
            trainer(output_dir=tmp_path / "run", model_config=toy_config(**changes)).train(max_steps=4, resume=True)
    assert trainer(output_dir=tmp_path / "run").train(max_steps=4, resume=True).steps == 4


def test_damaged_checkpoints_are_skipped_by_name_and_if_all_are_the_run_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"output_dir": tmp_path / "run", "checkpoint_every": 2, "keep_checkpoints": 3}
    trainer(**settings).train(max_steps=6)
    newest, second, third = list_checkpoints(tmp_path / "run" / "checkpoints")
    data = bytearray((newest / "state.safetensors").read_bytes())
    data[-5] ^= 1
    (newest / "state.safetensors").write_bytes(data)
    (second / "manifest.json").write_text("{")
    resumed = trainer(**settings).train(max_steps=6, resume=True)
    assert len(resumed.losses) == 4
    assert f"skipped checkpoint {newest.name}" in caplog.text and f"skipped checkpoint {second.name}" in caplog.text
    for path in list_checkpoints(tmp_path / "run" / "checkpoints"):
        (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match="no good checkpoint"):
        trainer(**settings).train(max_steps=6, resume=True)
    assert third.name == "step_00000002"


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    trainer(output_dir=tmp_path, checkpoint_every=1, keep_checkpoints=2).train(max_steps=5)
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step_00000005", "step_00000004"]
