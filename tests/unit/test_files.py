"""Files that are either whole or absent, and locks that let one process write: under full disks, kills and races."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deepseek import files
from deepseek.errors import DataError, RunLockedError, StorageError
from tests.system import child_environment, file_size_limit


def content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write_folder(target: Path, text: str, replace: bool = True) -> None:
    with files.atomic_folder(target, replace=replace) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.txt").write_text(text)


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    """Let `os.<name>` fail as the system would."""

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, name, fail)


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "new" / "bundle"
    write_folder(target, "one")
    write_folder(target, "two")
    assert content(target) == {"a.txt": "two", "sub/b.txt": "two"}
    assert [path.name for path in target.parent.iterdir()] == ["bundle"]
    with pytest.raises(StorageError, match="exists already"):
        write_folder(target, "three", replace=False)
    assert content(target)["a.txt"] == "two"


@pytest.mark.parametrize(
    ("call", "code", "next_step"),
    [
        ("fsync", errno.ENOSPC, "free some space"),
        ("fsync", errno.EIO, "check the disk"),
        ("fsync", errno.EDQUOT, "quota"),
        ("rename", errno.EROFS, "disk that can be written"),
        ("mkdir", errno.EROFS, "disk that can be written"),
        ("mkdir", errno.EACCES, "may write"),
    ],
)
def test_a_disk_that_refuses_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, next_step: str
) -> None:
    target = tmp_path / "bundle"
    write_folder(target, "old")
    with monkeypatch.context() as patch:
        refuse(patch, call, code)
        patch.setattr(files, "_exchange", lambda first, second: False)
        with pytest.raises(StorageError, match=next_step) as caught:
            write_folder(target, "new")
    assert caught.value.errno == code
    assert content(tmp_path) == {"bundle/a.txt": "old", "bundle/sub/b.txt": "old"}


def test_a_file_too_large_for_the_disk_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    files.write_text(path, "old")
    with file_size_limit(1000), pytest.raises(StorageError, match="File too large") as caught:
        files.write_text(path, "new" * 1000)
    assert isinstance(caught.value, OSError)
    assert content(tmp_path) == {"file.txt": "old"}


def test_a_library_that_wraps_the_systems_error_is_understood(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    with file_size_limit(1000), pytest.raises(StorageError, match="File too large"):
        with files.atomic_path(tmp_path / "weights") as temporary:
            save_file({"w": torch.zeros(1000)}, temporary)
    assert list(tmp_path.iterdir()) == []


def test_the_second_of_two_renames_that_fails_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "bundle"
    write_folder(target, "old")
    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    write_folder(target, "newer")
    assert content(tmp_path) == {"bundle/a.txt": "newer", "bundle/sub/b.txt": "newer"}
    rename, calls = os.rename, []

    def fail_second(source: object, destination: object) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "broken")
        rename(source, destination)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rename", fail_second)
    with pytest.raises(StorageError):
        write_folder(target, "newest")
    assert content(tmp_path) == {"bundle/a.txt": "newer", "bundle/sub/b.txt": "newer"}


def test_errors_of_the_writer_pass_through_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.atomic_folder(tmp_path / "x") as folder:
        (folder / "a").write_text(str(1 / 0))
    with pytest.raises(DataError), files.atomic_path(tmp_path / "y") as temporary:
        temporary.write_text("half")
        raise DataError("no")
    with pytest.raises(FileNotFoundError), files.atomic_path(tmp_path / "z"):
        open(tmp_path / "missing")  # noqa: SIM115
    assert list(tmp_path.iterdir()) == []


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    for write in (
        lambda: files.write_text(tmp_path / "file" / "x", ""),
        lambda: write_folder(tmp_path / "file" / "x", ""),
    ):
        with pytest.raises(StorageError, match="in the way|parent is a folder"):
            write()
    with pytest.raises(StorageError, match="in the way"):
        (tmp_path / "folder").mkdir()
        files.write_text(tmp_path / "folder", "")


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from deepseek import files
target, moment = Path(sys.argv[1]), sys.argv[2]
def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "aside":
    rename = os.rename
    files._exchange = lambda first, second: False
    os.rename = lambda a, b: die() if Path(b) == target else rename(a, b)
elif moment == "exchanged":
    files.shutil.rmtree = lambda path, **_: die() if path.exists() else None
with files.atomic_folder(target, replace=True) as folder:
    (folder / "a.txt").write_text("new")
    if moment == "writing":
        die()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="kills with SIGKILL")
@pytest.mark.parametrize(
    ("moment", "found"), [("writing", "old"), ("aside", None), ("exchanged", "new")], ids=lambda value: str(value)
)
def test_a_killed_writer_leaves_a_whole_folder_and_the_sweep_tidies(
    tmp_path: Path, moment: str, found: str | None
) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "a.txt").write_text("old")
    child = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(target), moment], env=child_environment())
    assert child.returncode == -signal.SIGKILL
    assert (target / "a.txt").read_text() == found if found else not target.exists()
    (tmp_path / f"other.tmp-{os.getppid()}").write_text("a living process writes here")
    (tmp_path / "notes.tmp-final").write_text("a user's own")
    files.sweep_temporaries(tmp_path)
    assert content(tmp_path) == {
        "bundle/a.txt": found or "old",
        f"other.tmp-{os.getppid()}": "a living process writes here",
        "notes.tmp-final": "a user's own",
    }


HOLDER = """
import sys, time
from pathlib import Path
from deepseek.files import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def another_process_holding(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, env=child_environment()
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"held\n"
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_second_process_is_refused_with_pid_and_host_and_takes_over_once_the_first_is_dead(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    with another_process_holding(folder) as child:
        with pytest.raises(RunLockedError) as caught, files.folder_lock(folder):
            pass
        assert f"process {child.pid} on host {socket.gethostname()}" in str(caught.value)
        child.kill()
        child.wait()
        with files.folder_lock(folder):
            assert json.loads((folder / ".lock").read_text())["pid"] == os.getpid()
    assert list(folder.iterdir()) == []


def test_a_process_cannot_hold_a_folder_twice_and_lets_go_on_errors(tmp_path: Path) -> None:
    with files.folder_lock(tmp_path):
        with pytest.raises(RunLockedError, match=str(os.getpid())), files.folder_lock(tmp_path):
            pass
        assert (tmp_path / ".lock").exists()
    with pytest.raises(ZeroDivisionError), files.folder_lock(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def holder(**changes: object) -> str:
    own = {"pid": os.getpid(), "host": socket.gethostname(), "start": files._process_start(os.getpid())}
    return json.dumps({**own, **changes})


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"pid": 1',
        "[]",
        "7",
        "\x00" * 40,
        holder(pid=(1 << 31) - 2),
        holder(pid=0),
        holder(pid=-1),
        holder(pid=10**30),
        pytest.param(
            holder(start="1"), marks=pytest.mark.skipif(sys.platform != "linux", reason="start times are Linux's")
        ),
    ],
    ids=["empty", "cut short", "list", "number", "zeros", "dead", "zero", "negative", "huge", "pid used again"],
)
def test_a_lock_that_names_nobody_alive_is_taken_over(tmp_path: Path, text: str) -> None:
    (tmp_path / ".lock").write_text(text)
    with files.folder_lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_lock_of_another_host_stays(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(holder(host="elsewhere", pid=3))
    with pytest.raises(RunLockedError, match="process 3 on host elsewhere"), files.folder_lock(tmp_path):
        pass
    assert json.loads((tmp_path / ".lock").read_text())["host"] == "elsewhere"


RACER = """
import sys, time
from pathlib import Path
from deepseek.errors import RunLockedError
from deepseek.files import folder_lock
folder = Path(sys.argv[1])
held = 0
end = time.monotonic() + 1.0
while time.monotonic() < end:
    try:
        with folder_lock(folder):
            (folder / "inside").mkdir()   # fails if another process is inside too
            held += 1
            (folder / "inside").rmdir()
    except RunLockedError:
        pass
print(held)
"""


def test_of_many_processes_only_one_holds_the_folder_at_a_time(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RACER), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=child_environment(),
        )
        for _ in range(4)
    ]
    answers = [racer.communicate(timeout=60) for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, answers
    assert sum(int(out) for out, _ in answers) > 10


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for code in (errno.EROFS, errno.EACCES):
        with monkeypatch.context() as patch:
            refuse(patch, "mkdir", code)
            with pytest.raises(StorageError), files.folder_lock(tmp_path / "new"):
                pass


@pytest.mark.parametrize("write", [files.write_json, lambda path, value: files.write_text(path, str(value))])
def test_json_and_text_are_written_atomically(tmp_path: Path, write: Callable[[Path, object], None]) -> None:
    write(tmp_path / "deep" / "x", {"a": "ü"})
    assert "ü" in (tmp_path / "deep" / "x").read_text(encoding="utf-8")
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "deep" / "x", float("nan"))
    assert "ü" in (tmp_path / "deep" / "x").read_text(encoding="utf-8")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc: a process that ended can't be told apart")
def test_what_a_process_left_that_ended_and_was_not_asked_after_is_swept(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.read() == b""  # it ended; until `wait` its number is taken
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        (tmp_path / f"a.json.tmp-{child.pid}").touch()
        assert [path.name for path in files.sweep_temporaries(tmp_path)] == [f"a.json.tmp-{child.pid}"]
