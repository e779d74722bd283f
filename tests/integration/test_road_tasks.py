"""The whole road of every task but language modelling, on small data: what a run leaves, measures and shows."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from deepseek.bundle import load
from deepseek.errors import ConfigError, DataError
from deepseek.report.run_folder import read_run
from deepseek.road import samples
from deepseek.road.recipe import read_recipe
from deepseek.road.walk import walk
from tests.command_line import in_this_process
from tests.task_data import RECIPES, written

FIGURES = {
    "image_classification": {"loss", "accuracy", "macro_f1"},
    "classification": {"loss", "accuracy", "f1", "roc_auc"},
    "text": {"loss", "accuracy"},
    "regression": {"loss", "mae", "rmse"},
    "speech_recognition": {"loss", "cer"},
    "detection": {"loss", "map50", "map"},
    "segmentation": {"loss", "dice", "iou"},
}
CLASSES = {
    "image_classification": ["0", "1", "2", "3"],
    "classification": ["large", "small"],
    "text": ["bad", "good"],
    "speech_recognition": ["0", "1"],
    "detection": ["large", "small"],
}


def results_of(run: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return results


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a walked run of every kind: KIND/runs/first."""
    return tmp_path_factory.mktemp("tasks")


def walked(kind: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the run of a kind, walked once for all tests of this file."""
    folder = place / kind
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    if not folder.exists():
        folder.mkdir()
        written(kind, folder)
    monkeypatch.chdir(folder)
    run = Path("runs/first")
    if not run.exists():
        said: list[str] = []
        walk(read_recipe("recipe.yaml"), said.append)
        assert any("samples to train" in line for line in said) and any("samples held back" in line for line in said)
    return run


@pytest.mark.parametrize("kind", RECIPES)
def test_a_run_measures_its_task_on_what_it_held_back(kind: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = walked(kind, place, monkeypatch)
    results = results_of(run)
    assert FIGURES[kind] <= set(results["evaluate"]["figures"]), results["evaluate"]
    assert results["evaluate"]["samples"] == results["data"]["val_samples"] > 0
    assert results["data"]["classes"] == CLASSES.get(kind, [])
    assert results["train"]["steps"] == 6 and results["train"]["items"] > 0
    assert set(results["evaluate"]["baselines"]) <= set(results["evaluate"]["figures"])
    assert len(results["examples"]["rows"]) == min(4, results["evaluate"]["samples"])
    page = (run / "report.html").read_text(encoding="utf-8")
    name, value = next((n, v) for n, v in results["evaluate"]["figures"].items() if n != "loss")
    assert f"{value:.3f}" in page, name
    assert page.count("<li><img") == sum("picture" in row for row in results["examples"]["rows"])
    assert not re.search(r"<img(?![^>]*data:image/png)", page)
    if len(results["examples"]["classes"]) > 1:
        assert sum(map(sum, results["examples"]["confusion"])) == results["evaluate"]["samples"]


@pytest.mark.parametrize("kind", RECIPES)
def test_the_bundle_makes_batches_of_raw_samples_by_itself(
    kind: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = walked(kind, place, monkeypatch)
    shutil.copytree(run / "bundle", tmp_path / "moved")  # no path into the run folder may be left in it
    bundle = load(tmp_path / "moved", device="cpu")
    bundle.verify()
    assert bundle.config.labels == CLASSES.get(kind, [])
    assert bundle.config.task == (kind if kind != "text" else "classification")
    assert not {"RandomAffine", "SpecAugment", "HorizontalFlip", "RandomCrop"} & {
        s["name"] for s in bundle.config.pipeline
    }
    raw = {
        "image_classification": {"image": torch.zeros(1, 16, 16, dtype=torch.uint8)},
        "classification": {"row": {"size": 3.0, "colour": "green"}},
        "regression": {"row": {"size": 3.0, "colour": "red"}},
        "text": {"text": "a lovely room"},
        "speech_recognition": {"waveform": torch.zeros(3200), "sample_rate": 8000, "text": "low"},
        "detection": {"image": torch.zeros(3, 50, 40, dtype=torch.uint8)},
        "segmentation": {"image": torch.zeros(1, 40, 40, dtype=torch.uint8)},
    }[kind]
    pipeline = bundle.pipeline()
    assert pipeline is not None
    batch = pipeline([raw, raw])
    taken = {key: value for key, value in batch.items() if key in bundle.model.example_inputs(1)}
    with torch.no_grad():
        assert bundle.model(**taken) is not None


def test_measuring_again_gives_the_same_figures_and_other_data_are_measured_whole(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = walked("classification", place, monkeypatch)
    before = results_of(run)["evaluate"]["figures"]
    done = in_this_process(monkeypatch, capsys, "evaluate", run)
    assert done.code == 0, done.stderr
    assert f"{before['accuracy']:.4f}" in done.stdout and "accuracy, no model" in done.stdout
    assert results_of(run)["evaluate"]["figures"] == before
    (tmp_path / "other.csv").write_text("size,colour,price,kind\n1,red,3,small-red\n9,blue,19,large\n")
    done = in_this_process(monkeypatch, capsys, "evaluate", run, "--data", tmp_path / "other.csv")
    assert done.code == 0, done.stderr
    assert results_of(run)["evaluate"]["figures"] == before
    rows = [line for line in done.stdout.splitlines() if line.startswith("accuracy")]
    assert len(rows) == 2 and float(rows[0].split()[-1]) in (0.0, 0.5, 1.0)


def test_validation_data_of_their_own_have_the_classes_of_the_training_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written("classification", tmp_path)
    text = path.read_text(encoding="utf-8")
    text = text.replace("train: data\n", "train: data\n  val: other.csv\n").replace(
        '  classes: {large: large, "*": small}\n', ""
    )
    path.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Path("other.csv").write_text("size,colour,price,kind\n1,red,3,small-red\n9,blue,19,large\n8,red,17,huge\n")
    with pytest.raises(DataError, match="classes that the training data lack") as error:
        walk(read_recipe("recipe.yaml"), lambda _: None)
    assert error.value.found == "huge"
    Path("other.csv").write_text("size,colour,price,kind\n1,red,3,small-red\n9,blue,19,large\n")
    walk(read_recipe("recipe.yaml"), lambda _: None)
    results = results_of(Path("runs/first"))
    assert results["data"]["split"] == {"by": "file", "val": "other.csv"}
    assert results["data"]["classes"] == ["large", "small-blue", "small-red"]
    assert results["examples"]["confusion"][1] == [0, 0, 0] and results["evaluate"]["samples"] == 2


def test_the_onnx_file_answers_as_the_model_does(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = walked("image_classification", place, monkeypatch)
    pixels = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(run / "bundle" / "exports" / "model.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    with torch.no_grad():
        wanted = load(run / "bundle", device="cpu").model(pixels)
    torch.testing.assert_close(torch.from_numpy(logits), wanted, rtol=1e-3, atol=1e-4)


def test_a_speaker_is_either_heard_or_held_back(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = results_of(walked("speech_recognition", place, monkeypatch))["data"]["split"]
    assert split["by"] == "speaker" and len(split["held_out"]) == 1


def test_a_stopped_run_goes_on_with_the_same_split_and_refuses_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written("classification", tmp_path)
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe("recipe.yaml")
    with monkeypatch.context() as broken:
        broken.setattr(samples, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            walk(recipe, lambda _: None)
    before = results_of(Path("runs/first"))
    rows = Path("data/rows.csv")
    text = rows.read_text()
    rows.write_text(text + "7,red,15,large\n")
    with pytest.raises(ConfigError, match="another part would be held back"):
        walk(recipe, lambda _: None, resume=True)
    rows.write_text(text)
    said: list[str] = []
    walk(recipe, said.append, resume=True)
    after = results_of(Path("runs/first"))
    assert any("done before" in line for line in said)
    assert after["data"]["split"] == before["data"]["split"] and after["train"] == before["train"]
    assert "accuracy" in after["evaluate"]["figures"]


WRONG = {
    "another number of classes": (
        "image_classification",
        ("stem_size: 8", "stem_size: 8, num_labels: 7"),
        ["model.num_labels", "found:  7", "wanted: 4", "leave"],
    ),
    "a model of another kind": (
        "image_classification",
        ("model: {name: ResNet, block: basic, depths: [1], hidden_sizes: [8], stem_size: 8}", "model: {name: BERT}"),
        ["BERT", "image_classification", "pixel_values (2, 1, 16, 16)"],
    ),
    "no labels": (
        "classification",
        ("label: kind", "columns: [a, b, c, d]"),
        ["no classes to change", "label: COLUMN"],
    ),
    "a pipeline that is not finished": (
        "image_classification",
        ("pipeline: [{name: RandomAffine}, {name: Normalize, mean: [0.3], std: [0.3]}]", "rename: {image: picture}"),
        ["pixel_values"],
    ),
    "masks with more classes than the model": (
        "segmentation",
        ("mask_values: [0, 255]", "mask_values: [7, 0, 255]"),
        ["unknown class", "0 to 1"],
    ),
    "a class that is not there": ("classification", ("{large: large", "{lagre: large"), ["'lagre'", "large"]),
    "classes left out": ("classification", (', "*": small', ""), ["small-blue", "'*'"]),
    "texts left out": ("speech_recognition", (', "1": high', ""), ["no text for a class", "1"]),
    "a value to split by that is not there": (
        "speech_recognition",
        ("split_by: speaker", "split_by: speeker"),
        ["'speeker'", "speaker"],
    ),
    "a value to rename that is not there": ("regression", ("{price: labels}", "{prize: labels}"), ["'prize'", "price"]),
    "compression": ("image_classification", ("export:", "compress: {max_drop: much}"), ["max_drop", "1%"]),
    "no data": ("text", ("train: data", "train: ${NOWHERE}/data"), ["NOWHERE", "not set", "--data"]),
    "a vocabulary too small": (
        "text",
        ("max_length: 24, num_layers", "vocab_size: 261, max_length: 24, num_layers"),
        ["model.vocab_size", "261", "300"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_together_is_told_before_training(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, (old, new), told = WRONG[case]
    path = written(kind, tmp_path)
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    done = in_this_process(monkeypatch, capsys, "run", "recipe.yaml")
    assert done.code != 0
    for part in told:
        assert part in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("runs").exists()


def test_the_command_line_can_name_other_data_and_fewer_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written("classification", tmp_path)
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    done = in_this_process(monkeypatch, capsys, "train", "recipe.yaml", "--data", "elsewhere", "--max-steps", "2")
    assert done.code == 0, done.stderr
    assert results_of(Path("runs/first"))["train"]["steps"] == 2
    assert read_run(Path("runs/first")).results.section("data").text("source") == "elsewhere"
    done = in_this_process(monkeypatch, capsys, "train", "--resume", "runs/first", "--max-steps", "3")
    assert done.code == 2 and "max-steps" in done.stderr


def test_new_writes_a_recipe_for_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = in_this_process(monkeypatch, capsys, "new", "cells", "--task", "detection", "--data", "my cells")
    assert done.code == 0, done.stderr
    recipe = read_recipe("cells.yaml")
    assert (recipe.task_name, recipe.data.train) == ("detection", "my cells")
    done = in_this_process(monkeypatch, capsys, "new", "other", "--task", "detecting", "--data", "x")
    assert done.code == 2 and "detection" in done.stderr


def test_explain_teaches_tasks_readers_and_stages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, told in {
        "task": "segmentation: ",
        "task.detection": "Batches: `pixel_values`",
        "data": "split_by",
        "data.reader": "voc: ",
        "data.pipeline.Letterbox": "size",
    }.items():
        done = in_this_process(monkeypatch, capsys, "explain", key)
        assert done.code == 0 and told in done.stdout, done.output
