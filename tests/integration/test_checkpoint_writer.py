"""The writer process, its parent and the disk, each failing for real; and ranks that save and load together."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek.checkpoint import background
from deepseek.checkpoint.store import CheckpointStore, list_checkpoints, load_checkpoint, save_checkpoint
from deepseek.errors import CheckpointError, StorageError
from deepseek.files import _alive as alive
from tests.checkpoint_child import large_state, toy, train, tree
from tests.system import child_environment, file_size_limit

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the writer process shares memory by memfd, which Linux has"),
    pytest.mark.timeout(120),
]
ROOT = Path(__file__).parents[2]


def small_state(step: int) -> dict[str, Any]:
    return {"step": step, "w": torch.arange(5000.0) * step}


def assert_is(path: Path, wanted: dict[str, Any]) -> None:
    assert_same(load_checkpoint(path), wanted)


def assert_same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_same(found[key], wanted[key])
    elif isinstance(wanted, Tensor):
        assert torch.equal(found, wanted)
    else:
        assert found == wanted


@pytest.fixture
def always_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "PROCESS_FROM", 0)


@pytest.fixture
def opened(always_a_process: None, tmp_path: Path) -> Iterator[CheckpointStore]:
    store = CheckpointStore(tmp_path / "checkpoints")
    yield store
    store.close()


def pid_of(store: CheckpointStore) -> int:
    pid = store._writer.pid
    assert pid is not None
    return pid


def wait_until_gone(pid: int) -> None:
    end = time.monotonic() + 30
    while alive(pid):
        assert time.monotonic() < end, f"process {pid} lives on"
        time.sleep(0.02)


def test_a_process_of_its_own_writes_and_ends_with_the_store(opened: CheckpointStore) -> None:
    opened.prepare(small_state(0))
    for step in (1, 2, 3):
        opened.save(step, small_state(step), {"val_loss": float(step)})
    opened.wait()
    pid = pid_of(opened)
    assert pid != os.getpid() and os.getpriority(os.PRIO_PROCESS, pid) == 10
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert "libtorch" not in maps and "numpy" not in maps and "deepseek-checkpoint" in maps
    assert [one.step for one in opened.list()] == [3, 2]
    assert_is(opened.folder / "step_00000003", small_state(3))
    for name in ("SIGINT", "SIGTERM"):  # they are for the trainer, which saves once more
        os.kill(pid, getattr(signal, name))
    opened.save(4, small_state(4))
    opened.wait()
    assert pid_of(opened) == pid
    opened.close()
    assert not alive(pid)


def test_workers_forked_later_do_not_keep_the_writer_from_ending(opened: CheckpointStore) -> None:
    opened.save(1, small_state(1))
    opened.wait()
    pid = pid_of(opened)
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(100,))
    worker.start()
    try:
        opened.close()
        assert not alive(pid) and worker.is_alive()
    finally:
        worker.kill()
        worker.join()


def test_a_large_state_goes_to_the_process_by_itself(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        for step in (1, 2):
            store.save(step, large_state(step))
            assert_same(
                None if store.newest_good() is None else load_checkpoint(tmp_path / f"step_{step:08d}"),
                large_state(step),
            )
        assert pid_of(store) != os.getpid()


def test_a_killed_writer_is_told_and_replaced(opened: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    opened.save(1, small_state(1))
    opened.wait()
    os.kill(pid_of(opened), signal.SIGKILL)  # between saves
    opened.save(2, small_state(2))
    with pytest.raises(
        CheckpointError, match="step 2 was not written: the process that writes checkpoints died"
    ) as caught:
        opened.wait()
    assert caught.value.found == "SIGKILL"
    monkeypatch.setenv("DEEPSEEK_FAULT", "checkpoint.rename:2:kill")  # for the next writer, in the midst of a save
    opened.save(3, small_state(3))
    opened.save(4, small_state(4))
    with pytest.raises(CheckpointError, match="step 4 was not written"):
        while True:
            opened.check()
    assert sorted(os.listdir(opened.folder)) == ["step_00000001", "step_00000003"]
    monkeypatch.delenv("DEEPSEEK_FAULT")
    opened.save(5, small_state(5))
    opened.wait()
    assert [one.step for one in opened.list()] == [5, 3] and opened.latest_committed == 5
    assert_is(opened.folder / "step_00000005", small_state(5))


@pytest.mark.parametrize(
    ("kind", "code"), [("disk_full", errno.ENOSPC), ("io_error", errno.EIO), ("read_only", errno.EROFS)]
)
def test_what_the_disk_says_comes_back_from_the_process(
    kind: str, code: int, opened: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPSEEK_FAULT", f"checkpoint.fsync:4:{kind}")
    opened.save(1, small_state(1))
    opened.save(2, small_state(2))
    pid = pid_of(opened)
    with pytest.raises(StorageError, match="checkpoint of step 2 was not written: can't write") as caught:
        opened.save(3, small_state(3))
    assert caught.value.errno == code and caught.value.fix
    opened.wait()
    assert [one.step for one in opened.list()] == [3, 1] and pid_of(opened) == pid


def test_a_file_size_limit_of_the_writer_is_a_full_disk(opened: CheckpointStore) -> None:
    with file_size_limit(100_000):  # the process inherits it
        opened.save(1, small_state(1))
        opened.wait()
    opened.save(2, {"w": torch.zeros(100_000)})
    with pytest.raises(StorageError) as caught:
        opened.wait()
    assert caught.value.errno == errno.EFBIG and os.listdir(opened.folder) == ["step_00000001"]


@contextlib.contextmanager
def child(task: str, folder: Path, number: int, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.checkpoint_child", task, str(folder), str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(**environment),
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


SECOND_SAVE = ["checkpoint.write:4", "checkpoint.fsync:4", "checkpoint.fsync:6", "checkpoint.rename:2"]


@pytest.mark.parametrize("moment", SECOND_SAVE)
def test_a_trainer_killed_while_its_state_is_written_leaves_the_last_committed(moment: str, tmp_path: Path) -> None:
    with child("save_and_die", tmp_path, signal.SIGKILL, DEEPSEEK_FAULT=f"{moment}:delay:60") as process:
        assert process.stdin is not None and process.stdout is not None
        writer = json.loads(process.stdout.readline())["writer"]
        temporary = tmp_path / f"step_00000002.tmp-{writer}"
        while not temporary.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(30) == -signal.SIGKILL
    wait_until_gone(writer)
    assert temporary.exists()  # it gave up; the next start clears it away
    with CheckpointStore(tmp_path) as store:
        found = store.newest_good()
        assert found is not None and found.path.name == "step_00000001" and os.listdir(tmp_path) == ["step_00000001"]
        assert_same(found.state, large_state(1))
        store.save(2, small_state(2))


def test_a_trainer_that_exits_finishes_its_save(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from deepseek.checkpoint.store import CheckpointStore;"
        "from tests.checkpoint_child import large_state;"
        "store = CheckpointStore(Path(sys.argv[1])); store.save(1, large_state(1)); sys.exit(3)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path)], cwd=ROOT, env=child_environment(), check=False
    )
    assert done.returncode == 3
    assert_is(tmp_path / "step_00000001", large_state(1))


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_system_sees_syncs_before_the_rename(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from deepseek.checkpoint.store import CheckpointStore;"
        "from tests.checkpoint_child import large_state;"
        "store = CheckpointStore(Path(sys.argv[1])); store.save(1, large_state(1)); store.close()"
    )
    trace = tmp_path / "trace"
    calls = "trace=fsync,fdatasync,rename,renameat,renameat2"
    command = [
        "strace",
        "-f",
        "-y",
        "-qq",
        "-e",
        calls,
        "-o",
        str(trace),
        sys.executable,
        "-c",
        code,
        str(tmp_path / "c"),
    ]
    done = subprocess.run(command, cwd=ROOT, env=child_environment(), check=False, capture_output=True, text=True)
    if done.returncode != 0 and "ptrace" in done.stderr.lower():
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    lines = [line for line in trace.read_text().splitlines() if str(tmp_path / "c") in line]
    renames = [number for number, line in enumerate(lines) if "rename" in line and "step_00000001" in line]
    assert len(renames) == 1
    synced = re.compile(r"fsync\(\d+<([^>]+)>")
    before = [match[1] for line in lines[: renames[0]] if (match := synced.search(line))]
    after = [match[1] for line in lines[renames[0] :] if (match := synced.search(line))]
    names = {Path(path).name for path in before}
    assert {"state.safetensors", "state.json", "manifest.json"} <= names
    assert before[-1].endswith(f"step_00000001.tmp-{before[-1].rpartition('-')[2]}")  # the folder, after its files
    assert after == [str(tmp_path / "c")]


def test_sharded_ranks_save_whole_tensors_and_take_their_parts_of_them(tmp_path: Path) -> None:
    model = toy()
    alone = tree(model, train(model))
    shutil.move(save_checkpoint(tmp_path, 1, alone), tmp_path / "alone")
    with child("ranks", tmp_path, 0) as first, child("ranks", tmp_path, 1) as second:
        assert first.wait(100) == 0 and second.wait(100) == 0
    for name in ("ours", "ours_synchronous"):
        for found, wanted in zip(flat(load_checkpoint(tmp_path / name)), flat(alone), strict=True):
            torch.testing.assert_close(found, wanted)  # two ranks sum gradients in another order
    for found, wanted in zip(flat(load_checkpoint(tmp_path / "again")), flat(alone), strict=True):
        assert torch.equal(found, wanted)
    assert list_checkpoints(tmp_path / "store") == []


def flat(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    items = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for item in items for tensor in flat(item)]
