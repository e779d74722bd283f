"""A search that is killed goes on where it was: what was measured and trained is not done again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek import bundle
from tests.command_line import environment
from tests.toy_compress import trained


def started(folder: Path, original: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.search_child", str(original), str(folder / "small")]
    env = {**environment(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2], env=env)


def test_a_killed_search_goes_on_where_it_was(tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    original = trained(tmp_path / "bundle")
    done = []
    with started(tmp_path, original) as first:
        assert first.stdout is not None
        for line in first.stdout:
            done.append(line.strip())
            if line.startswith("pruned") and "weight_only" in line:  # a pruned model was trained and is kept
                break
        os.kill(first.pid, signal.SIGKILL)
        first.wait(timeout=30)
    assert first.returncode == -signal.SIGKILL and not (tmp_path / "small").exists()
    pruned = next((tmp_path / "small-search" / "models").glob("pruned-??"))
    trained_once = (pruned / "model.safetensors").stat().st_mtime_ns
    with started(tmp_path, original) as second:
        said = second.communicate(timeout=100)[0].splitlines()
    assert second.returncode == 0 and said[-1].startswith("chosen pruned")
    assert not set(done[:-1]) & set(said), "what was measured is not measured again"
    assert said[0] == done[-1]
    assert (pruned / "model.safetensors").stat().st_mtime_ns == trained_once
    bundle.load(tmp_path / "small", device="cpu").verify()
