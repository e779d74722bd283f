"""`deepseek verify-trainer` in a process of its own, on a toy recipe: the table, the JSON, the exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from deepseek.cli.verify import verify_trainer
from tests.command_line import in_process_of_its_own
from tests.toy_gpt import write_text

RECIPE = """
name: toy
data: {train: text.jsonl}
model: {name: GPT, num_layers: 1, d_model: 32, num_heads: 2, max_length: 32, vocab_size: 300, dropout: 0.1}
train: {batch_size: 4, learning_rate: 0.003, precision: fp32, compile: false}
"""
ALONE = """
import typer
from deepseek.cli.verify import verify_trainer
typer.run(verify_trainer)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_text(tmp_path / "text.jsonl")
    (tmp_path / "toy.yaml").write_text(RECIPE)
    return tmp_path


def test_a_sound_recipe_passes_in_a_process_of_its_own(folder: Path) -> None:
    done = in_process_of_its_own(folder, "toy.yaml", "--json", "--steps", "4", code=ALONE)
    assert done.code == 0, done.output
    found = json.loads(done.stdout)
    assert found["ok"] is True and found["failed"] == []
    verdicts = {check["name"]: check["status"] for check in found["checks"]}
    assert verdicts["resume"] == verdicts["gradient"] == verdicts["accumulation"] == verdicts["same seed"] == "pass"
    assert verdicts["compiled"] == verdicts["precision"] == "skipped"
    assert "gradient ..." in done.stderr
    assert sorted(path.name for path in folder.iterdir() if path.name != "cache") == ["text.jsonl", "toy.yaml"]


def test_the_table_is_printed_and_a_failure_is_exit_code_1(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DEEPSEEK_CACHE", str(folder / "cache"))
    monkeypatch.setattr("deepseek.train.verifying.batching.LIMIT", -1.0)
    app = typer.Typer()
    app.command()(verify_trainer)
    result = CliRunner().invoke(app, ["toy.yaml", "--steps", "2"])
    assert result.exit_code == 1, result.output
    assert "failed: accumulation" in result.output and "same seed" in result.output
