"""The command line: every command's help, what it prints, its exit codes, and errors without a traceback."""

from __future__ import annotations

import json
import pickle
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import deepseek
from deepseek.cli.allocator import SETTING
from deepseek.cli.app import app
from deepseek.cli.serve import main as deepseek_serve
from deepseek.cli.training import _closing, _console
from deepseek.road.recipe import Recipe, read_recipe
from deepseek.road.run_folder import RunFolder
from deepseek.road.walk import Walk
from tests.command_line import Finished, environment, in_this_process

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]
COMMANDS += [group.name for group in app.registered_groups]


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> Finished:
        return in_this_process(monkeypatch, capsys, *arguments)

    return call


def test_the_commands_are_those_of_the_road():
    road = {"quickstart", "run", "new", "train", "compress", "evaluate", "export", "serve", "deploy"}
    assert set(COMMANDS) == road | {"cook", "models", "explain", "check-env", "estimate", "verify", "verify-trainer"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, program):
    done = program(command, "--help")
    assert done.code == 0
    assert f"Usage: deepseek {command} " in done.stdout
    assert program(command, "-h").stdout == done.stdout


def test_help_lists_every_command(program):
    listed = program("--help").stdout
    assert all(command in listed for command in COMMANDS)


def test_version(program):
    assert program("--version") == Finished(0, f"{deepseek.__version__}\n", "")


def test_models_lists_the_zoo(program):
    done = program("models")
    assert done.code == 0
    assert "gpt2-small" in done.stdout and "124.4 M" in done.stdout and "498 MB" in done.stdout
    entries = json.loads(program("models", "--json").stdout)
    small = next(entry for entry in entries if entry["name"] == "gpt2-small")
    assert small["parameters"] == 124_439_808 and small["training_bytes"] == 16 * 124_439_808


def test_models_show_draws_a_size_a_template_and_a_file(program):
    Path("mine.yaml").write_text("name: GPT\nvocab_size: 100\nnum_layers: 3\nd_model: 64\n")
    small, mine = program("models", "show", "gpt2-small").stdout, program("models", "show", "mine.yaml").stdout
    assert "0-11 x12" in small and "124.4 M" in small and "1 x 16 x 768" in small and "Radford" in small
    assert "0-2 x3" in mine and "d_model: 64" in mine
    assert "GPT" in program("models", "show", "GPT", "--depth", "0").stdout


def test_models_show_names_the_nearest(program):
    done = program("models", "show", "gpt2-smal")
    assert done.code == 2 and "gpt2-small" in done.stderr


def test_explain_tells_a_setting_a_section_and_all(program):
    one = program("explain", "train.learning_rate").stdout
    assert "3e-4" in one or "0.0003" in one
    assert "num_heads" in program("explain", "model").stdout
    assert "64" in program("explain", "model.num_heads").stdout
    everything = program("explain").stdout
    assert all(f"{section}:" in everything for section in Recipe.model_fields)


@pytest.mark.parametrize(
    ("key", "near"), [("train.learning_rat", "learning_rate"), ("model.num_head", "num_heads"), ("trane", "train")]
)
def test_explain_names_the_nearest_setting(key, near, program):
    done = program("explain", key)
    assert done.code == 2
    assert near in done.stderr


@pytest.mark.parametrize(
    "name", ["x", "dir/x.yaml", "x.yml", "my model", "123", "true", "DATA", "名字", "-" * 3 + "a", "x" * 90]
)
def test_new_writes_a_recipe_that_can_be_read(name, program):
    done = program("new", "--", name)
    assert done.code == 0, done.stderr
    written = Path(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    assert read_recipe(written).data.train == "python-docs"
    assert "deepseek run" in done.stdout


@pytest.mark.parametrize("data", ['weird "name".txt', "a: b # c.txt", "文 本.jsonl", "NAME", "\\n.txt", "it's", "null"])
def test_new_keeps_the_name_of_the_data_whatever_it_is(data, program):
    assert program("new", "x", "--data", data).code == 0
    assert read_recipe("x.yaml").data.train == data


def test_new_overwrites_nothing(program):
    Path("x.yaml").write_text("mine")
    done = program("new", "x")
    assert done.code == 2
    assert "exists already" in done.stderr
    assert Path("x.yaml").read_text() == "mine"


def test_new_refuses_a_name_that_yaml_can_not_hold(program):
    done = program("new", "x", "--data", "\udcff.txt")
    assert done.code == 2
    assert not Path("x.yaml").exists()


WRONG = {
    "unknown recipe file": (["run", "nothing.yaml"], 2, "nothing.yaml does not exist"),
    "a folder for a recipe": (["run", "."], 2, "is a folder"),
    "nothing to train": (["train"], 2, "a recipe, or --resume RUN"),
    "a recipe and a run": (["train", "a.yaml", "--resume", "runs/a"], 2, "a recipe, or --resume RUN"),
    "a resumed run of another name": (["train", "--resume", "runs/a", "--name", "b"], 2, "keeps its folder"),
    "no run folder": (["train", "--resume", "."], 2, "not a run folder"),
    "missing bundle": (["evaluate", "nothing"], 1, "nothing does not exist"),
    "missing bundle to compress": (["compress", "nothing"], 1, "nothing does not exist"),
    "missing bundle to export": (["export", "nothing"], 1, "nothing does not exist"),
    "no bundle": (["export", "."], 1, "is not a bundle"),
    "missing bundle to serve": (["serve", "nothing"], 1, "nothing"),
    "nothing to serve": (["serve"], 2, "nothing to serve"),
    "too many to serve": (["serve", "a", "--model_dir", "b"], 2, "named twice"),
    "no text": (["quickstart", "--data", "nothing.txt"], 1, "nothing.txt does not exist"),
    "unknown option": (["run", "--nothing"], 2, "No such option"),
    "unknown command": (["walk"], 2, "No such command"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_come_without_a_traceback_and_with_their_exit_code(case, program, tmp_path):
    arguments, code, told = WRONG[case]
    done = program(*arguments)
    assert done.code == code, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_errors_show_square_brackets_as_they_are(program):
    assert "[/bold].yaml does not exist" in program("run", "[/bold].yaml").stderr


def test_a_pickle_in_place_of_a_bundle_is_not_opened(program):
    class Harmful:
        def __reduce__(self):
            return (open, ("opened", "w"))

    Path("model.pt").write_bytes(pickle.dumps(Harmful()))
    done = program("export", "model.pt")
    assert done.code == 1
    assert "never opened" in done.stderr
    assert not Path("opened").exists()


def test_deepseek_serve_tells_errors_alike(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["deepseek-serve", "--model_dir", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit) as end:
        deepseek_serve()
    assert end.value.code == 1
    assert "does not exist" in capsys.readouterr().err


def test_ctrl_c_outside_of_training_ends_with_130(program, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deepseek.road.recipe.read_recipe", interrupted)
    assert program("run", "x.yaml").code == 130


@pytest.mark.parametrize(
    ("only_train", "command"),
    [(True, "deepseek train --resume 'runs/a b'"), (False, "deepseek run 'runs/a b/recipe.yaml' --resume")],
)
def test_a_stopped_run_is_told_how_to_go_on(only_train, command, capsys):
    stopped = Walk(RunFolder(Path("runs/a b")), None, True, 1.0)
    with pytest.raises(typer.Exit) as end:
        _closing(_console(), stopped, only_train=only_train)
    assert end.value.exit_code == 130
    assert command in capsys.readouterr().out


def test_a_run_stopped_by_sigterm_has_an_exit_code_of_its_own(tmp_path):
    run = RunFolder(tmp_path)
    run.record("train", {"interrupted": True, "signal": 15})
    with pytest.raises(typer.Exit) as end:
        _closing(_console(), Walk(run, None, True, 1.0))
    assert end.value.exit_code == 75


RESTART = """
import json, os, sys
with open("starts.jsonl", "a") as log:
    log.write(json.dumps([sys.argv[1:], os.environ.get("GLIBC_TUNABLES")]) + "\\n")
from deepseek.cli import main
main()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc reads these settings")
@pytest.mark.parametrize("settings", [None, "glibc.malloc.arena_max=8"])
def test_training_restarts_once_with_huge_pages_and_keeps_its_arguments(settings, tmp_path):
    (tmp_path / "start.py").write_text(RESTART)
    arguments = ["run", "no such [file].yaml", "--name", "ünï"]
    env = {name: value for name, value in environment(tmp_path).items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "start.py", *arguments],
        cwd=tmp_path,
        env=env if settings is None else {**env, "GLIBC_TUNABLES": settings},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "no such [file].yaml does not exist" in done.stderr
    starts = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    if settings is None:
        assert starts == [[arguments, None], [arguments, SETTING]]
    else:
        assert starts == [[arguments, settings]]
