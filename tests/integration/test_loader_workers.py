"""Worker processes that are killed, hang, raise or are left: each is noticed, named, and leaves nothing behind."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from deepseek.data.loaders import DistributedDataset
from deepseek.errors import DataError

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts processes and segments as Linux shows them")


def segments() -> set[str]:
    """Return the names in /dev/shm, without those that tell the process they are of, another than this, which lives."""
    found = set()
    for name in os.listdir("/dev/shm"):
        pids = {int(number) for number in re.findall(r"\d{1,9}", name)} - {os.getpid()}
        if not any(map(psutil.pid_exists, pids)):
            found.add(name)
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before, handles = segments(), len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert not multiprocessing.active_children()
    assert not segments() - before
    assert len(os.listdir("/proc/self/fd")) <= handles + 2


class Trouble:
    """Samples of numbers; `at` is where `what` happens, once for each line that is missing in `log`."""

    def __init__(self, log: Path, what: str = "", at: int = -1, times: int = 1, count: int = 40) -> None:
        self.log, self.what, self.at, self.times, self.count = log, what, at, times, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == self.at and self._once():
            if self.what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.what == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif self.what == "sleep":
                time.sleep(1000)
            elif self.what == "exit":
                os._exit(3)
        return {"number": index, "values": torch.full((256,), float(index))}

    def _once(self) -> bool:
        with open(self.log, "a") as handle:
            handle.write("x")
        return self.log.stat().st_size <= self.times


def numbers(batches: Any) -> list[list[int]]:
    return [batch["number"].tolist() for batch in batches]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("kill", "was killed by SIGKILL"),
        ("exit", "ended with exit code 3"),
        ("stop", "0.5 seconds"),
        ("sleep", "0.5 s"),
    ],
)
def test_a_lost_worker_is_named_with_its_work(what: str, says: str, tmp_path: Path) -> None:
    data = DistributedDataset(Trouble(tmp_path / "log", what, 17), 4, 3, shuffle=False, timeout=0.5)
    with pytest.raises(DataError, match=says) as caught:
        numbers(data)
    text = str(caught.value)
    assert "worker 1 (process" in text and "batch 4 of epoch 0: samples 16, 17, 18, 19; it was at sample 17" in text
    assert data.position <= 4


@pytest.mark.parametrize("what", ["kill", "stop"])
def test_under_retry_another_worker_takes_over_and_the_order_stays(what: str, tmp_path: Path) -> None:
    wanted = numbers(DistributedDataset(Trouble(tmp_path / "log"), 4, 0, seed=3))
    options = {"seed": 3, "on_error": "retry", "retries": 2, "backoff": 0.01, "timeout": 0.5}
    data = DistributedDataset(Trouble(tmp_path / "log", what, 17, times=2), 4, 3, **options)
    assert numbers(data) == wanted and (tmp_path / "log").stat().st_size == 3
    (tmp_path / "log").unlink()
    with pytest.raises(DataError, match="worker"):
        numbers(DistributedDataset(Trouble(tmp_path / "log", what, 17, times=9), 4, 3, **options))


def test_a_worker_killed_from_outside_is_noticed(tmp_path: Path) -> None:
    data = DistributedDataset(Trouble(tmp_path / "log"), 4, 2, timeout=20)
    batches = data.iterate()
    next(batches)
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    with pytest.raises(DataError, match="was killed by SIGKILL"):
        for _ in range(50):
            next(batches)


def test_workers_end_with_the_loop_the_iterator_or_the_data_set(tmp_path: Path) -> None:
    data = DistributedDataset(Trouble(tmp_path / "log"), 4, 2)
    for _ in data:
        break
    assert not multiprocessing.active_children()
    with pytest.raises(ZeroDivisionError) as caught:
        for _ in data:
            _ = 1 / 0
    assert caught.value.__traceback__ is not None  # it holds the loop's frame, and that the iterator
    data.close()
    assert not multiprocessing.active_children()
    kept = data.iterate()
    held = next(kept)
    with data:
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children() and held["values"].sum() == 256 * held["number"].sum()


def test_a_hang_ends_with_the_data_set_when_batches_are_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    data = DistributedDataset(Trouble(tmp_path / "log", "sleep", 17), 4, 2, shuffle=False, timeout=1000)
    batches = data.iterate()
    assert numbers([next(batches), next(batches)]) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    data.close()


def test_more_workers_than_cores_and_large_batches(tmp_path: Path) -> None:
    data = DistributedDataset(Trouble(tmp_path / "log", count=3000), 256, 8)
    assert sorted(sum(numbers(data), [])) == list(range(3000))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_start_methods(method: str, tmp_path: Path) -> None:
    data = DistributedDataset(Trouble(tmp_path / "log"), 8, 1, shuffle=False, start_method=method)
    assert numbers(data)[0] == list(range(8))


def test_without_shared_memory_the_data_goes_through_the_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepseek.data.loaders import shared_memory

    monkeypatch.setattr(shared_memory.Outbox.__init__, "__defaults__", (False,))
    for batch in DistributedDataset(Trouble(tmp_path / "log"), 16, 2):
        assert torch.equal(batch["values"][:, 0], batch["number"].float())


def test_memory_stays_flat_over_epochs(tmp_path: Path) -> None:
    data = DistributedDataset(Trouble(tmp_path / "log", count=4096), 64, 2)
    batches, used = data.iterate(), []
    for step in range(4 * len(data)):
        next(batches)
        if step >= len(data) and step % 8 == 0:
            children = multiprocessing.active_children()
            used.append(sum(psutil.Process(child.pid).memory_info().rss for child in children))
    batches.close()
    slope = np.polyfit(np.arange(len(used)), used, 1)[0] * len(used) / 3  # bytes an epoch
    assert slope < 2 << 20


CHILD = """
import json, multiprocessing, signal, sys, time
import torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
from deepseek.data.loaders import DistributedDataset

class Slow:
    def __len__(self):
        return 1000
    def __getitem__(self, index):
        time.sleep(0.02)
        return {"number": index, "values": torch.zeros(1000)}

data = DistributedDataset(Slow(), 4, 3)
try:
    for number, batch in enumerate(data):
        if number == 2:
            print(json.dumps([child.pid for child in multiprocessing.active_children()]), flush=True)
except KeyboardInterrupt:
    print(len(multiprocessing.active_children()), flush=True)
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_a_killed_parent_leave_no_process(ending: signal.Signals) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert child.stdout is not None
    pids = json.loads(child.stdout.readline())
    assert len(pids) == 3
    time.sleep(0.2)  # not while the line above is still being written
    if ending == signal.SIGINT:
        os.killpg(child.pid, ending)  # a terminal sends it to every process of the group
    else:
        child.kill()
    out, err = child.communicate(timeout=30)
    expected = ("0", "", 0) if ending == signal.SIGINT else ("", "", -signal.SIGKILL)
    assert (out.strip(), err, child.returncode) == expected
    limit = time.monotonic() + 20
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < limit:
        time.sleep(0.05)
    gone = [pid for pid in pids if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE]
    assert gone == pids
