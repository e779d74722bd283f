"""The compress stage of every task, in a run and from the command line, on small data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deepseek.bundle import load
from deepseek.road.recipe import read_recipe
from deepseek.road.walk import train_only, walk
from tests.command_line import in_this_process
from tests.task_data import RECIPES, written

METHODS = {
    "image_classification": ("static", "accuracy"),
    "classification": ("dynamic", "accuracy"),
    "text": ("weight_only", "accuracy"),
    "regression": ("int4", "mae"),
    "speech_recognition": ("dynamic", "cer"),
    "detection": ("static", "map"),
    "segmentation": ("bf16", "dice"),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_every_task_has_a_compress_stage(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, metric = METHODS[kind]
    path = written(kind, tmp_path)
    text = path.read_text(encoding="utf-8").replace("export:\n", "")
    path.write_text(f"{text}compress: {{method: {method}, max_drop: 5.0}}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said: list[str] = []
    run = walk(read_recipe(path), said.append).run
    compress: dict[str, Any] = json.loads((run.path / "results.json").read_text(encoding="utf-8"))["compress"]
    metric = metric if compress["rows"][0]["figures"][metric] else "loss"  # six steps may not reach any mAP
    assert compress["metric"]["name"] == metric
    forms = [row["form"] for row in compress["rows"]]
    assert forms[:2] == ["fp32", "bf16"] and forms[-1] == compress["chosen"]
    evaluated = json.loads((run.path / "results.json").read_text(encoding="utf-8"))["evaluate"]["figures"]
    assert compress["rows"][0]["figures"][metric] == pytest.approx(evaluated[metric], rel=1e-3, abs=1e-3)
    small = load(run.compressed, device="cpu")
    small.verify()
    assert small.config.labels == load(run.bundle, device="cpu").config.labels
    assert small.config.pipeline == load(run.bundle, device="cpu").config.pipeline
    assert compress["rows"][-1]["bytes"] < compress["rows"][0]["bytes"]
    assert all(row["latency_ms"]["p50"] > 0 for row in compress["rows"])
    assert any("one sample" in line for line in said)
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert 'id="compression"' in page and compress["chosen"] in page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small classifier, trained."""
    folder = tmp_path_factory.mktemp("searched")
    path = written("classification", folder)
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "compress: {runtimes: [eager], training_steps: 10}\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        train_only(read_recipe(path), lambda line: None)
    return folder / "runs" / "first"


def test_a_budget_on_the_command_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parents[1])
    limits = ("--size", "1.9kB", "--max-drop", "20%", "--time", "1m")
    done = in_this_process(monkeypatch, capsys, "compress", run, *limits)
    assert done.code == 0, done.output
    assert "written:" in done.stdout and "on the front" in done.stdout and "number formats: fp32" in done.stderr
    small = load(run / "bundle-small", device="cpu")
    assert (run / "bundle-small" / "model.safetensors").stat().st_size <= 2100
    small.verify()
    search = json.loads((run / "results.json").read_text(encoding="utf-8"))["compress"]["search"]
    assert search["front"] and search["budget"]["bytes"] == 1900
    page = (run / "bundle-small-search" / "front.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 2 and "Search for a budget" in page and "https:" not in page and "http:" not in page


def test_a_budget_that_can_not_be_met_ends_with_1_and_leaves_the_front(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parents[1])
    out = tmp_path / "tiny"
    done = in_this_process(monkeypatch, capsys, "compress", run, "--size", "10B", "--time", "0.5s", "--out", out)
    assert done.code == 1 and "nothing" in done.stderr and "nearest is" in done.stderr
    assert not out.exists() and (tmp_path / "tiny-search" / "front.html").is_file()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--size", "1.2"], "size has no unit"),
        (["--latency", "quick"], "latency can't be read"),
        (["--max-drop", "-1"], "max_drop"),
        (["--time", "3m"], "for a search"),
        (["--size", "1MB", "--method", "static"], "chooses the method itself"),
        (["--method", "int3"], "method"),
    ],
)
def test_wrong_options_are_told(
    options: list[str], told: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parents[1])
    done = in_this_process(monkeypatch, capsys, "compress", run, *options)
    assert done.code == 2 and told in done.stderr, done.output
