"""The whole road through the real command line, on a small text: what a run leaves, and how it is taken up again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import pytest
import torch

from deepseek.bundle import load
from deepseek.road.recipe import Recipe, read_recipe
from tests.command_line import environment, in_process_of_its_own, in_this_process, write_text

RECIPE = """\
name: first
data:
  train: text.jsonl
  vocab_size: 300
model: {name: GPT, max_length: 32, num_layers: 2, d_model: 32, num_heads: 2}
train:
  max_steps: 30
  batch_size: 4
  learning_rate: 3e-3
  compile: false
  precision: fp32
  val_fraction: 0.1
  log_every: 1
  checkpoint_every: 10
  validate_every: 10
evaluate:
  prompts: ["the list", "这个函数"]
  sampling: {max_new_tokens: 8, seed: 1}
compress: {max_perplexity_increase: 0.5, latency_prompt: 8, latency_tokens: 4, latency_repeats: 1}
export:
serve: {port: 0}
"""

STOP_AT_12 = """
import os, signal
from deepseek.train.metrics_log import MetricsLog
log = MetricsLog.log
def log_and_interrupt(self, values, step):
    log(self, values, step)
    if step == 12:
        os.kill(os.getpid(), signal.SIGINT)
MetricsLog.log = log_and_interrupt
from deepseek.cli import main
main()
"""


FILES_OF_AT_MOST_60_KB = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
from deepseek.cli import main
main()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the text and the recipe, and the run `runs/first` walked to its end."""
    folder = tmp_path_factory.mktemp("road")
    write_text(folder / "text.jsonl")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    done = in_process_of_its_own(folder, "run", "recipe.yaml")
    assert done.code == 0, done.output
    for said in ("data", "train", "evaluate", "compress", "export", "deepseek serve runs/first/bundle-int8"):
        assert said in done.stdout
    assert "Traceback" not in done.stderr
    return folder


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    return Path("runs/first")


def results_of(run: Path) -> dict:
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


def metrics_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_results_have_every_section_of_the_contract(run):
    results = results_of(run)
    wanted = {
        "data": {"source", "documents", "skipped", "characters", "train_tokens", "val_tokens", "vocab_size", "seconds"},
        "model": {"name", "parameters", "config"},
        "train": {"steps", "tokens", "seconds", "tokens_per_second", "train_loss", "val_loss", "precision", "compiled"},
        "evaluate": {"val_loss", "perplexity", "bits_per_byte", "unigram_loss", "bigram_loss"},
        "compress": {"rows", "chosen"},
        "export": {"format", "bytes", "opset", "checks", "runtime"},
        "environment": {"torch"},
    }
    for section, names in wanted.items():
        assert names <= set(results[section]), section
    assert results["name"] == "first"
    assert results["train"]["tokens"] == 30 * 4 * 32
    assert results["data"]["documents"] == 2000
    assert [sample["prompt"] for sample in results["samples"]] == ["the list", "这个函数"]
    assert all(sample["text"].startswith(sample["prompt"]) for sample in results["samples"])
    assert {"form", "bytes", "val_loss", "perplexity", "prefill_ms", "token_ms"} <= set(results["compress"]["rows"][0])
    assert results["compress"]["rows"][-1]["form"] == results["compress"]["chosen"]


def test_the_model_learned_more_than_how_often_tokens_occur(run):
    numbers = results_of(run)["evaluate"]
    assert numbers["val_loss"] < np.log(300)
    assert numbers["bigram_loss"] < numbers["unigram_loss"] < np.log(300)
    assert numbers["perplexity"] == pytest.approx(np.exp(numbers["val_loss"]))


def test_the_report_has_the_key_numbers(run):
    results, page = results_of(run), (run / "report.html").read_text(encoding="utf-8")
    assert f"{results['evaluate']['val_loss']:.2f}" in page
    assert "这个函数" in page
    assert "max_perplexity_increase" in page


def test_the_bundles_verify(run):
    for name in ("bundle", "bundle-int8"):
        bundle = load(run / name, device="cpu")
        bundle.verify()
        assert bundle.tokenizer is not None
        assert bundle.generate("the list", max_new_tokens=4, do_sample=False)
    assert sum(load(run / "bundle-int8", device="cpu").files.values()) > 0


def test_the_onnx_file_answers_as_the_model_does(run):
    ids = torch.randint(300, (3, 11), generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(run / "bundle" / "exports" / "model.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: ids.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(logits), load(run / "bundle", device="cpu").model(ids), rtol=1e-3, atol=1e-4
        )


def test_metrics_have_a_line_a_step_and_the_validations(run):
    rows = metrics_of(run)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 31))
    assert [row["step"] for row in rows if "val_loss" in row] == [10, 20, 30]
    assert list((run / "tensorboard").iterdir())


def test_the_recipe_in_the_run_folder_is_the_one_that_was_walked(run):
    assert read_recipe(run / "recipe.yaml") == read_recipe("recipe.yaml")


def test_a_stage_that_is_not_wanted_stays_unwanted_when_the_recipe_is_read_back(tmp_path):
    recipe = Recipe(data={"train": "x.txt"}, model={"name": "GPT"})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert read_recipe(tmp_path / "recipe.yaml").replace(train=recipe.train) == recipe


def test_walking_the_same_recipe_again_is_refused_and_changes_nothing(run, monkeypatch, capsys):
    before = snapshot(run)
    for command in ("run", "train"):
        done = in_this_process(monkeypatch, capsys, command, "recipe.yaml")
        assert done.code == 2
        assert "holds a run already" in done.stderr
        assert "--name" in done.stderr
        assert "Traceback" not in done.stderr
    assert snapshot(run) == before


def test_evaluate_gives_the_numbers_of_the_run_again(run, monkeypatch, capsys):
    before = results_of(run)
    done = in_this_process(monkeypatch, capsys, "evaluate", run)
    assert done.code == 0, done.stderr
    assert f"{before['evaluate']['val_loss']:.4f}" in done.stdout
    assert results_of(run)["samples"] == before["samples"]


def test_evaluate_measures_all_of_another_text(run, tmp_path, monkeypatch, capsys):
    before = snapshot(run)
    done = in_this_process(monkeypatch, capsys, "evaluate", run, "--data", write_text(tmp_path / "other.txt", 400))
    assert done.code == 0, done.stderr
    assert {"val_loss", "perplexity", "bits_per_byte"} == {line.split()[0] for line in done.stdout.splitlines()}
    assert snapshot(run) == before


def test_compress_and_export_write_where_they_are_told(run, tmp_path, monkeypatch, capsys):
    before = snapshot(run)
    small, onnx = tmp_path / "small", tmp_path / "m.onnx"
    done = in_this_process(monkeypatch, capsys, "compress", run / "bundle", "--out", small, "--method", "weight_only")
    assert done.code == 0, done.stderr
    load(small, device="cpu").verify()
    done = in_this_process(monkeypatch, capsys, "export", run / "bundle", "--out", onnx)
    assert done.code == 0, done.stderr
    assert onnx.is_file()
    assert snapshot(run) == before


def test_compress_does_not_write_over_a_bundle(run, monkeypatch, capsys):
    before = snapshot(run)
    done = in_this_process(monkeypatch, capsys, "compress", run)
    assert done.code == 2
    assert "--out" in done.stderr
    assert snapshot(run) == before


@contextmanager
def serving(place: Path, module: str, *arguments: str) -> Iterator[str]:
    """Start a server, yield its address, and stop it with Ctrl-C."""
    code = f"from {module} import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=place, env=environment(place), stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        assert "serving" in line, line
        yield line.split(" at ")[1].split()[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130)
    finally:
        process.kill()
        process.communicate()


def test_serve_answers_for_the_compressed_bundle(run, place):
    with serving(place, "deepseek.cli", "serve", "runs/first/bundle-int8") as url:  # the recipe says port 0
        models = httpx.get(f"{url}/v1/models").json()["data"]
        body = {"model": "bundle-int8", "prompt": "the list", "max_tokens": 4}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
    assert [model["id"] for model in models] == ["bundle-int8"]
    assert answer["usage"]["completion_tokens"] >= 1


def test_deepseek_serve_serves_the_bundles_of_a_run_folder(run, place):
    with serving(place, "deepseek.cli.serve", "--model_dir", "runs/first", "--port", "0") as url:
        models = httpx.get(f"{url}/v1/models").json()["data"]
    assert {model["id"] for model in models} == {"bundle", "bundle-int8"}


def test_a_stopped_run_goes_on_as_if_never_stopped_and_walks_the_rest(run, place, monkeypatch, capsys):
    stopped = in_process_of_its_own(place, "run", "recipe.yaml", "--name", "second", code=STOP_AT_12)
    second = Path("runs/second")
    assert stopped.code == 130, stopped.output
    assert "deepseek run runs/second/recipe.yaml --resume" in stopped.stdout
    assert not (second / "bundle").exists()
    assert results_of(second)["train"]["interrupted"]

    resumed = in_process_of_its_own(place, "train", "--resume", "runs/second")
    assert resumed.code == 0, resumed.output
    alike = [{k: row[k] for k in ("step", "tokens", "loss", "val_loss") if k in row} for row in metrics_of(run)]
    for row, wanted in zip(metrics_of(second), alike, strict=True):
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)
    assert results_of(second)["train"]["tokens"] == results_of(run)["train"]["tokens"]
    assert results_of(second)["train"]["val_loss"] == pytest.approx(results_of(run)["train"]["val_loss"], rel=1e-5)

    trained = {**snapshot(second / "checkpoints"), **snapshot(second / "bundle")}
    walked = in_this_process(monkeypatch, capsys, "run", second / "recipe.yaml", "--resume")
    assert walked.code == 0, walked.output
    assert "done before" in walked.stdout
    assert {"evaluate", "samples", "compress", "export"} <= set(results_of(second))
    assert (second / "report.html").is_file()
    now = {**snapshot(second / "checkpoints"), **snapshot(second / "bundle")}
    assert {name: now[name] for name in trained if name.endswith((".safetensors", ".json", ".yaml"))} == {
        name: time for name, time in trained.items() if name.endswith((".safetensors", ".json", ".yaml"))
    }


def test_resuming_a_finished_run_does_no_stage_again(run, monkeypatch, capsys):
    kept = {name: time for name, time in snapshot(run).items() if "bundle" in name or "checkpoints" in name}
    done = in_this_process(monkeypatch, capsys, "run", "recipe.yaml", "--resume")
    assert done.code == 0, done.stderr
    assert {name: time for name, time in snapshot(run).items() if "bundle" in name or "checkpoints" in name} == kept


@pytest.mark.parametrize("change", [("vocab_size: 300", "vocab_size: 280"), ("num_layers: 2", "num_layers: 3")])
def test_a_run_is_not_resumed_with_other_data_or_another_model(run, change, monkeypatch, capsys):
    before = snapshot(run)
    Path("other.yaml").write_text(RECIPE.replace(*change), encoding="utf-8")
    done = in_this_process(monkeypatch, capsys, "run", "other.yaml", "--resume")
    assert done.code == 2
    assert "another" in done.stderr and "recipe.yaml" in done.stderr
    assert snapshot(run) == before


def test_there_is_nothing_to_resume_in_a_folder_without_a_run(run, monkeypatch, capsys):
    for arguments in (("run", "recipe.yaml", "--name", "none", "--resume"), ("train", "--resume", "runs/none")):
        done = in_this_process(monkeypatch, capsys, *arguments)
        assert done.code == 2
        assert "runs/none" in done.stderr
    assert not Path("runs/none").exists()


def test_a_folder_that_a_living_run_uses_is_refused_with_pid_and_host(run, place, monkeypatch, capsys):
    code = "import sys; from pathlib import Path; from deepseek.files import folder_lock\n"
    code += "with folder_lock(Path('runs/busy')): print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=place,
        env=environment(place),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        done = in_this_process(monkeypatch, capsys, "run", "recipe.yaml", "--name", "busy")
    finally:
        holder.communicate("")
    assert done.code == 1
    assert f"process {holder.pid} on host {socket.gethostname()}" in done.stderr
    assert "next:" in done.stderr


def test_an_output_folder_that_can_not_be_made_is_told(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        done = in_this_process(monkeypatch, capsys, "run", "recipe.yaml", "--output-dir", folder)
        assert done.code == 1
        assert "can't write" in done.stderr and "next:" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write to read-only folders")
def test_a_read_only_output_folder_is_told(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    done = in_this_process(monkeypatch, capsys, "run", "recipe.yaml", "--output-dir", tmp_path / "locked")
    assert done.code == 1
    assert "can't write" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_disk_that_takes_no_checkpoint_is_told_and_leaves_no_part_of_one(run, place):
    done = in_process_of_its_own(place, "run", "recipe.yaml", "--name", "full", code=FILES_OF_AT_MOST_60_KB)
    assert done.code == 1, done.output
    assert "can't write runs/full/checkpoints/step_00000030" in done.stderr and "next:" in done.stderr
    assert "training goes on without a checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(Path("runs/full/checkpoints").iterdir())
    assert not Path("runs/full/bundle").exists()


BAD = {
    "vocabulary larger than the data allows": ("vocab_size: 300", "vocab_size: 30000", "too small for this vocab"),
    "batch larger than the data": ("batch_size: 4", "batch_size: 100000", "does not fill one batch"),
    "sequence longer than the data": ("max_length: 32", "max_length: 1000000", "shorter than one sequence"),
    "missing text": ("text.jsonl", "nothing.jsonl", "can't read nothing.jsonl"),
    "corrupt record": ("text.jsonl", "corrupt.jsonl", "corrupt.jsonl:2"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_data_is_told_and_leaves_nothing_behind(case, run, monkeypatch, capsys):
    old, new, told = BAD[case]
    Path("corrupt.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "\xff\xfe"}\n')
    Path("bad.yaml").write_text(RECIPE.replace(old, new), encoding="utf-8")
    done = in_this_process(monkeypatch, capsys, "run", "bad.yaml", "--output-dir", "fresh", "--name", "bad")
    assert done.code == 1
    assert told in done.stderr and "next:" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("fresh").exists()


def test_a_model_that_can_not_fit_in_memory_is_refused_before_it_is_made(run, monkeypatch, capsys):
    huge = RECIPE.replace("num_layers: 2, d_model: 32", "num_layers: 4, d_model: 65536")
    Path("huge.yaml").write_text(huge, encoding="utf-8")
    done = in_this_process(monkeypatch, capsys, "run", "huge.yaml", "--name", "huge")
    assert done.code == 1
    assert "would not fit in memory" in done.stderr and "next:" in done.stderr
    assert not any(Path("runs/huge").rglob("*.safetensors"))
    small = in_this_process(monkeypatch, capsys, "train", "recipe.yaml", "--name", "huge")  # the name is not used up
    assert small.code == 0, small.stderr


def test_a_text_that_changed_since_is_noticed_when_the_run_goes_on(run, place, monkeypatch, capsys, caplog):
    text = Path("text.jsonl").read_text(encoding="utf-8")
    try:
        Path("text.jsonl").write_text(text + '{"text": "one more"}\n', encoding="utf-8")
        in_this_process(monkeypatch, capsys, "run", "recipe.yaml", "--resume")
    finally:
        Path("text.jsonl").write_text(text, encoding="utf-8")
    assert "not the one" in caplog.text
