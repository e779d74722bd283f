"""The cooker killed, stopped by a full disk and doubled: it goes on where it was, and nothing comes twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepseek.data.cooker import CookerConfig, DataCooker, Progress
from deepseek.errors import ConfigError, StorageError
from deepseek.files import folder_lock
from tests.system import child_environment, file_size_limit
from tests.unit.test_cooker_run import records, write

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals"),
    pytest.mark.timeout(240),
]
CONFIG = CookerConfig(block_documents=10)
_CHILD = """
import sys, time
from deepseek.data.cooker import CookerConfig, DataCooker

def wait(progress):
    time.sleep(0.02)

if __name__ == "__main__":
    cooker = DataCooker(CookerConfig(block_documents=10), workers=int(sys.argv[3]), progress=wait, commit_seconds=0.03)
    cooker.run(sys.argv[1], sys.argv[2])
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write(folder / "in.jsonl", records(300))
    DataCooker(CONFIG, workers=1).run(folder / "in.jsonl", folder / "out.jsonl")
    return folder


def _cook_until_killed(source: Path, output: Path, workers: int, seconds: float) -> int:
    """Run the cooker in a process, killed so long after it began to commit; return its exit code."""
    command = [sys.executable, "-c", _CHILD, str(source), str(output), str(workers)]
    child = subprocess.Popen(command, env=child_environment(), stderr=subprocess.PIPE)
    state = output.with_name(f"{output.name}.cook") / "state.json"
    limit = time.monotonic() + 60
    while child.poll() is None and not state.exists() and time.monotonic() < limit:
        time.sleep(0.005)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(seconds)
    if child.poll() is None:
        os.kill(child.pid, signal.SIGKILL)
    _, said = child.communicate(timeout=60)
    assert child.returncode in (0, -signal.SIGKILL), said.decode()
    return child.returncode


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_killed_again_and_again_ends_with_the_same_output(whole: Path, tmp_path: Path, workers: int) -> None:
    output, kills = tmp_path / "out.jsonl", 0
    for attempt in range(2):
        if _cook_until_killed(whole / "in.jsonl", output, workers, 0.1 + 0.3 * attempt) == 0:
            break
        kills += 1
        assert not output.exists()
    assert kills >= 1
    if not output.exists():
        state = json.loads((tmp_path / "out.jsonl.cook" / "state.json").read_text(encoding="utf-8"))
        seen: list[int] = []
        DataCooker(CONFIG, workers=1, progress=lambda progress: seen.append(progress.documents_in)).run(
            whole / "in.jsonl", output
        )
        assert seen[0] > state["tally"]["before"]["documents"] > 0
    for name in ("out.jsonl", "out.undo.jsonl"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.undo.jsonl"]


def test_a_full_disk_is_named_and_what_was_finished_stays(whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    config = CONFIG.replace(boilerplate=CONFIG.boilerplate.replace(recurring=False), duplicates={"method": "exact"})
    reference = tmp_path / "reference.jsonl"
    DataCooker(config, workers=1).run(whole / "in.jsonl", reference)
    limit = reference.stat().st_size // 2
    with file_size_limit(limit), pytest.raises(StorageError, match="goes on from there"):
        DataCooker(config, workers=1, commit_seconds=0).run(whole / "in.jsonl", output)
    part = (tmp_path / "out.jsonl.cook" / "output.jsonl").read_bytes()
    assert part.endswith(b"\n") and reference.read_bytes().startswith(part) and len(part) > 0
    DataCooker(config, workers=1).run(whole / "in.jsonl", output)
    assert output.read_bytes() == reference.read_bytes()


def test_two_runs_never_share_an_output_and_other_settings_dont_go_on(whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"

    def stop(progress: Progress) -> None:
        if progress.documents_in > 200:
            raise KeyboardInterrupt

    config = CONFIG.replace(boilerplate=CONFIG.boilerplate.replace(recurring=False))
    with folder_lock(tmp_path / "out.jsonl.cook"):
        other = [sys.executable, "-c", _CHILD, str(whole / "in.jsonl"), str(output), "1"]
        done = subprocess.run(other, env=child_environment(), capture_output=True, text=True, timeout=60)
    assert "is in use by another run" in done.stderr
    with pytest.raises(KeyboardInterrupt):
        DataCooker(config, workers=1, commit_seconds=0, progress=stop).run(whole / "in.jsonl", output)
    with pytest.raises(ConfigError, match="other settings"):
        DataCooker(CONFIG, workers=1).run(whole / "in.jsonl", output)
    DataCooker(CONFIG, workers=1).run(whole / "in.jsonl", output, resume=False)
    assert output.read_bytes() == (whole / "out.jsonl").read_bytes()
