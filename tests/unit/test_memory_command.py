"""`deepseek estimate`: the parts, the alternatives and the plan, for a language recipe and for one on samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepseek.cli.estimate import estimate
from tests.toy_gpt import write_text

TEXT = """\
data: {{train: {data}}}
model: {{name: GPT, vocab_size: 300, max_length: 32, num_layers: 2, d_model: 32, num_heads: 2}}
train: {{batch_size: 8, precision: fp32, device: cpu, async_checkpoints: false{more}}}
"""
TABLE = """\
data:
  train: {data}
  reader: {{kind: csv, label: kind}}
  pipeline: [{{name: TableColumns, one_hot: true}}]
task: {{name: classification}}
model: {{name: MLP}}
train: {{batch_size: 8, precision: fp32, device: cpu}}
"""


def recipe(folder: Path, form: str, data: Path, more: str = "") -> Path:
    path = folder / "recipe.yaml"
    path.write_text(form.format(data=data, more=more), encoding="utf-8")
    return path


def found(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    estimate(path, "", True)
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return values


def test_the_parts_add_up_and_the_alternatives_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = found(recipe(tmp_path, TEXT, tmp_path / "not-needed.txt"), capsys)
    parts = ("weights", "gradients", "optimizer", "activations", "workspace", "copies")
    assert sum(values[name] for name in parts) == values["peak"]
    assert values["optimizer"] == 2 * values["weights"] and values["micro_batch"] == 8
    rows = {(one["recompute"], one["micro_batch"]): one["peak"] for one in values["alternatives"]}
    assert rows["none", 8] == values["peak"] and rows["full", 8] < rows["selective", 8] < rows["none", 8]
    assert {count for _, count in rows} == {8, 4, 2}
    assert list(tmp_path.iterdir()) == [tmp_path / "recipe.yaml"]  # nothing was written, and the text not read


def test_the_table_and_the_plan_are_readable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path, TEXT, write_text(tmp_path / "text.jsonl"), ", memory_budget: 1GiB")
    estimate(path)
    said = capsys.readouterr().out
    for words in (
        "training on cpu in fp32, micro-batches of 8:",
        "peak",
        "micro-batch 4",
        "selective",
        "memory plan: ",
    ):
        assert words in said


def test_a_recipe_on_samples_takes_its_shapes_from_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{a},{b},{'yes' if a > b else 'no'}" for a, b in np.random.default_rng(0).integers(0, 9, (40, 2))]
    (tmp_path / "rows.csv").write_text("a,b,kind\n" + "\n".join(rows) + "\n", encoding="utf-8")
    values = found(recipe(tmp_path, TABLE, tmp_path / "rows.csv"), capsys)
    assert values["micro_batch"] == 8 and values["weights"] > 0
