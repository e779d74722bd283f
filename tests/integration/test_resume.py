"""Runs killed, stopped, doubled or out of disk: nothing is lost, and a resumed run is the run it would have been.

Every run is a real process of its own; see `tests/training_child.py`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deepseek.checkpoint.store import list_checkpoints, load_checkpoint
from deepseek.errors import RunLockedError, StorageError
from tests.system import child_environment
from tests.toy_gpt import write_text
from tests.training_child import STEPS, make_trainer

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals"),
    pytest.mark.timeout(240),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("data") / "text.jsonl", documents=60)


@contextlib.contextmanager
def training(text: Path, run: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a run; it is killed at the end of the block if it still lives."""
    arguments = json.dumps({"text": str(text), "output_dir": str(run), **options})
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.training_child", arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(),
        cwd=Path(__file__).parents[2],
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def train(text: Path, run: Path, **options: Any) -> tuple[int, dict[str, Any], str]:
    """Run to the end, whatever that is; return (exit code, what it printed, its log)."""
    with training(text, run, **options) as child:
        out, log = child.communicate(timeout=120)
    return child.returncode, json.loads(out) if out else {}, log


def rows(run: Path) -> list[dict[str, Any]]:
    """Return the metrics of each step but for the times, which differ."""
    with contextlib.suppress(FileNotFoundError):
        lines = (run / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return [{k: v for k, v in row.items() if k not in {"seconds", "tokens_per_second"}} for row in found]
    return []


def assert_same_run(run: Path, whole: Path) -> None:
    """Every loss, rate and norm, every final weight, and the random state agree bit by bit."""
    assert rows(run) == rows(whole) and [row["step"] for row in rows(run) if "loss" in row] == list(range(1, STEPS + 1))
    found, wanted = (
        load_file(list_checkpoints(path / "checkpoints")[0] / "state.safetensors") for path in (run, whole)
    )
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    assert (run / "bundle" / "model.safetensors").read_bytes() == (whole / "bundle" / "model.safetensors").read_bytes()


def wait_for_step(run: Path, step: int, child: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 100
    while not any(row["step"] >= step for row in rows(run)):
        assert child.poll() is None and time.monotonic() < end, child.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that was never stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    code, outcome, log = train(text, run)
    assert (code, outcome) == (0, {"steps": STEPS, "interrupted": False}), log
    return run


def damage_newest(run: Path) -> Path:
    """Cut the newest checkpoint's weights short, as a failing disk may."""
    newest = list_checkpoints(run / "checkpoints")[0]
    weights = newest / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    return newest


def test_a_run_killed_again_and_again_ends_as_if_it_never_was(text: Path, whole: Path, tmp_path: Path) -> None:
    chance = random.Random()
    seed = chance.randrange(1 << 30)
    chance.seed(seed)
    print("seed", seed)  # pytest shows it if the test fails
    run = tmp_path / "run"
    # at first two checkpoints come to be; then kills hit the tokenizer or one of the three files of a checkpoint
    kills = [("kill_step", chance.randint(9, 12)), ("kill_sync", chance.randint(2, 7))]
    kills += [("kill_sync", chance.randint(2, 7)), ("kill_step", chance.randint(1, 8))]
    damaged: Path | None = None
    for number, (how, moment) in enumerate(kills):
        code, outcome, log = train(text, run, resume=number > 0, **{how: moment})
        assert code == -signal.SIGKILL and outcome == {}, log
        assert damaged is None or f"skipped checkpoint {damaged.name}" in log
        for checkpoint in list_checkpoints(run / "checkpoints"):
            if checkpoint != damaged:
                load_checkpoint(checkpoint)  # whole, whatever was being written
        assert not (run / "bundle").exists()
        spare = len(list_checkpoints(run / "checkpoints")) > 1  # a slow writer may have come to the first one only
        damaged = damage_newest(run) if number == 2 and spare else None
    code, outcome, log = train(text, run, resume=True)
    assert (code, outcome) == (0, {"steps": STEPS, "interrupted": False}), log
    assert_same_run(run, whole)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000036", "step_00000040"]
    assert not [path for path in run.rglob("*") if ".tmp-" in path.name or path.name == ".lock"]


def test_a_run_killed_from_outside_at_any_moment_can_be_resumed(text: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with training(text, run, pause=0.01) as child:
        wait_for_step(run, 5, child)
        time.sleep(random.SystemRandom().uniform(0, 0.25))
        child.kill()
    code, outcome, log = train(text, run, resume=True)
    assert (code, outcome) == (0, {"steps": STEPS, "interrupted": False}), log
    assert_same_run(run, whole)


def stop(text: Path, run: Path, number: int) -> None:
    """Send a signal in mid-run, and check that the run saves, says how to go on, and ends without an error."""
    with training(text, run, pause=0.05) as child:
        wait_for_step(run, 6, child)
        child.send_signal(number)
        out, log = child.communicate(timeout=60)
    outcome = json.loads(out)
    assert child.returncode == 0 and outcome["interrupted"] and 6 <= outcome["steps"] < STEPS
    assert f"stopped at step {outcome['steps']} of {STEPS}" in log and "resume" in log
    assert list_checkpoints(run / "checkpoints")[0].name == f"step_{outcome['steps']:08d}"
    assert not (run / "bundle").exists() and not (run / ".lock").exists()


def test_ctrl_c_saves_says_how_to_go_on_and_the_run_goes_on(text: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stop(text, run, signal.SIGINT)
    code, outcome, log = train(text, run, resume=True)
    assert (code, outcome) == (0, {"steps": STEPS, "interrupted": False}), log
    assert_same_run(run, whole)


def test_sigterm_does_what_ctrl_c_does(text: Path, tmp_path: Path) -> None:
    stop(text, tmp_path / "run", signal.SIGTERM)


def test_a_second_run_on_the_same_folder_is_refused_while_the_first_lives(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with training(text, run, pause=0.05) as child:
        wait_for_step(run, 5, child)
        before = (run / "tokenizer.json").stat().st_mtime_ns
        for resume in (False, True):
            with pytest.raises(RunLockedError, match=f"process {child.pid} on host"):
                make_trainer(str(text), str(run)).train(resume=resume)
        assert child.poll() is None and (run / "tokenizer.json").stat().st_mtime_ns == before


def test_a_disk_full_for_a_while_costs_a_checkpoint_and_not_the_run(text: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, outcome, log = train(text, run, full_from=6, full_to=14)
    assert (code, outcome) == (0, {"steps": STEPS, "interrupted": False}), log
    assert re.search("the checkpoint of step (8|12) was not written", log), log  # a slow writer may meet one of them
    assert "step 16" not in log and "File too large" in log
    final = load_checkpoint(list_checkpoints(run / "checkpoints")[0])
    wanted = load_checkpoint(list_checkpoints(whole / "checkpoints")[0])
    assert all(torch.equal(final["model"][name], wanted["model"][name]) for name in wanted["model"])


def test_a_disk_full_at_the_end_is_an_error_that_keeps_what_was_saved(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, outcome, log = train(text, run, full_from=30)
    assert code == 3 and outcome["error"] == "StorageError", log
    assert "can't write" in outcome["message"] and "ulimit" in outcome["message"]
    kept = [int(path.name[-8:]) for path in list_checkpoints(run / "checkpoints")]
    assert kept in ([28, 24], [24, 20])  # that of step 28 is being written in the background when the disk fills up
    assert not [path for path in run.rglob("*") if ".tmp-" in path.name or path.name == ".lock"]
    assert not (run / "bundle").exists()


def test_an_output_folder_that_cannot_be_written_is_refused_before_training(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "mkdir", read_only)
    with pytest.raises(StorageError, match="disk that can be written"):
        make_trainer(str(text), str(tmp_path / "run")).train()


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_without_permission_is_refused_before_training(text: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o555)
    with pytest.raises(StorageError, match="may write"):
        make_trainer(str(text), str(tmp_path / "run")).train()
    assert list((tmp_path / "run").iterdir()) == []
