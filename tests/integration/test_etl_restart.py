"""A plan killed at random points, stopped by a full disk and doubled: it goes on, each row comes once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deepseek.data.etl import DataPipeline, Progress
from deepseek.errors import ConfigError, DataError, RunLockedError, StorageError
from deepseek.files import folder_lock
from tests.system import child_environment, file_size_limit

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals"),
    pytest.mark.timeout(240),
]
ROWS = 600
_CHILD = """
import sys, time
from deepseek.data.etl import DataPipeline

def slow(row):
    time.sleep(0.0003)
    return {**row, "size": len(row["text"])}

def twice(row):
    return [row, {**row, "copy": 1}]

def plan(source, output):
    read = DataPipeline.read(source, block_bytes=1000)
    unique = read.map(slow).dedup(key="text").flat_map(twice)
    return unique.split({"train": 0.8, "val": 0.2}, by="id").shuffle(seed=5).map(slow).write(output)

if __name__ == "__main__":
    engine, workers = sys.argv[3], int(sys.argv[4])
    plan(sys.argv[1], sys.argv[2]).run(engine, workers=workers, bad_rows=sys.argv[2] + ".bad.jsonl")
"""


def write_rows(path: Path, count: int = ROWS) -> None:
    drawn = random.Random(1)
    lines = [json.dumps({"id": number, "text": f"text {drawn.randrange(count // 2)}"}) for number in range(count)]
    lines[17] = "{broken"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def output_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("part-*") if path.is_file()}


def start(folder: Path, output: Path, engine: str = "local", workers: int = 1) -> subprocess.Popen[bytes]:
    (folder / "child.py").write_text(_CHILD, encoding="utf-8")
    command = [sys.executable, str(folder / "child.py"), str(folder / "in.jsonl"), str(output), engine, str(workers)]
    return subprocess.Popen(command, env=child_environment(), stderr=subprocess.PIPE)


def finished(child: subprocess.Popen[bytes]) -> None:
    _, said = child.communicate(timeout=120)
    assert child.returncode == 0, said.decode()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an input and `out`, what a run that nothing disturbs makes of it."""
    folder = tmp_path_factory.mktemp("whole")
    write_rows(folder / "in.jsonl")
    finished(start(folder, folder / "out"))
    return folder


def test_the_output_holds_each_row_as_often_as_a_loop_would_write_it(whole: Path) -> None:
    seen: dict[str, dict] = {}
    for line in (whole / "in.jsonl").read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            seen.setdefault(row["text"], {**row, "size": len(row["text"])})
    expected = [row for one in seen.values() for row in (one, {**one, "copy": 1})]
    found = [json.loads(line) for data in output_of(whole / "out").values() for line in data.splitlines()]

    def order(row: dict) -> tuple[int, int]:
        return row["id"], row.get("copy", 0)

    assert sorted(found, key=order) == sorted(expected, key=order)
    assert [row["id"] for row in found] != sorted(row["id"] for row in found)
    assert json.loads((whole / "out.bad.jsonl").read_text(encoding="utf-8"))["line"] == 18


def notes(output: Path) -> int:
    """Return how many tasks are noted as done; 0 while the folder of a stage goes away."""
    try:
        return len(list(output.glob(".etl/stage-*/*.json")))
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_again_and_again_it_ends_with_the_same_bytes(whole: Path, tmp_path: Path, workers: int) -> None:
    (tmp_path / "in.jsonl").symlink_to(whole / "in.jsonl")
    output, drawn, kills = tmp_path / "out", random.Random(workers), 0
    while not (output / "_manifest.json").exists() and kills < 8:
        before = notes(output)
        child = start(tmp_path, output, workers=workers)
        limit, wanted = time.monotonic() + 60, before + drawn.randint(1, 40)
        while child.poll() is None and time.monotonic() < limit:
            if notes(output) >= wanted:
                os.kill(child.pid, signal.SIGKILL)
                break
            time.sleep(0.003)
        _, said = child.communicate(timeout=60)
        assert child.returncode in (0, -signal.SIGKILL), said.decode()
        kills += child.returncode != 0
    assert kills >= 2
    finished(start(tmp_path, output, workers=workers))
    assert output_of(output) == output_of(whole / "out")
    assert (tmp_path / "out.bad.jsonl").read_bytes().count(b"\n") == 1
    assert sorted(path.name for path in output.iterdir()) == ["_manifest.json", "train", "val"]


def grown(row: dict) -> dict:
    return {**row, "filler": "x" * 2000 * (row["id"] == 450)}


def test_a_full_disk_keeps_what_is_committed_and_the_run_goes_on_with_space(whole: Path, tmp_path: Path) -> None:
    made = DataPipeline.read(str(whole / "in.jsonl"), block_bytes=1000).map(grown).write(tmp_path / "out")
    bad = tmp_path / "bad.jsonl"
    with file_size_limit(2000), pytest.raises(StorageError):
        made.run(workers=1, bad_rows=bad)
    committed = {name: data for name, data in output_of(tmp_path / "out").items()}
    assert committed and not (tmp_path / "out" / "_manifest.json").exists()
    assert not list(tmp_path.rglob("*.tmp-*"))
    report = made.run(workers=1, bad_rows=bad)
    assert report.resumed_blocks == len(committed) and report.rows_written == ROWS - 1
    DataPipeline.read(str(whole / "in.jsonl"), block_bytes=1000).map(grown).write(tmp_path / "again").run(
        workers=1, bad_rows=bad
    )
    assert output_of(tmp_path / "out") == output_of(tmp_path / "again")


class _Stop(Exception):
    pass


def stop_after(blocks: int) -> Callable[[Progress], None]:
    def tell(progress: Progress) -> None:
        if progress.blocks_done == blocks:
            raise _Stop

    return tell


def other(row: dict) -> dict:
    return {**row, "other": True}


def test_a_changed_plan_or_input_is_not_mixed_with_what_is_there(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    read = DataPipeline.read(str(tmp_path / "in.jsonl"), block_bytes=1000)
    bad = tmp_path / "bad.jsonl"
    with pytest.raises(_Stop):
        read.map(grown).write(tmp_path / "out").run(workers=1, bad_rows=bad, progress=stop_after(5))
    with pytest.raises(ConfigError, match="step 2 has changed") as caught:
        read.map(other).write(tmp_path / "out").run(workers=1, bad_rows=bad)
    assert "resume=False" in str(caught.value)
    with open(tmp_path / "in.jsonl", "a", encoding="utf-8") as handle:
        handle.write('{"id": 10000, "text": "new"}\n')
    with pytest.raises(DataError, match="the input has changed"):
        read.map(grown).write(tmp_path / "out").run(workers=1, bad_rows=bad)
    report = read.map(other).write(tmp_path / "out").run(workers=1, bad_rows=bad, resume=False)
    assert report.resumed_blocks == 0 and report.rows_written == ROWS
    rows = [json.loads(line) for data in output_of(tmp_path / "out").values() for line in data.splitlines()]
    assert all(row["other"] for row in rows) and len(rows) == ROWS


def test_two_runs_never_write_to_one_folder(whole: Path, tmp_path: Path) -> None:
    made = DataPipeline.read(str(whole / "in.jsonl")).write(tmp_path / "out")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with folder_lock(tmp_path / "out" / ".etl"):
            lock = tmp_path / "out" / ".etl" / ".lock"
            held = json.loads(lock.read_text(encoding="utf-8"))
            start_of = (Path("/proc") / str(child.pid) / "stat").read_text().rpartition(")")[2].split()[19]
            lock.write_text(json.dumps({**held, "pid": child.pid, "start": start_of}), encoding="utf-8")
            with pytest.raises(RunLockedError):
                made.run(workers=1, bad_rows=tmp_path / "bad.jsonl")
    finally:
        child.kill()
        child.wait()
