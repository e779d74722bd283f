"""A training process killed by SIGKILL anywhere, inside saves too, again and again: no resume goes wrong, and the run
ends with the weights, losses and order of data of a run that was never disturbed, bit by bit.

Kills come from outside at random moments, half of them with all processes that the run has started, and from fault
points inside. `python -m benchmarks.kill_anywhere` does more of it, and the same to other frameworks.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.lives import Death, Nursery
from deepseek.checkpoint.store import list_checkpoints, load_checkpoint
from deepseek.errors import CheckpointError
from tests.kill_child import ACCUMULATE, EVERY, STEPS
from tests.system import child_environment

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="forks, and sends POSIX signals"),
    pytest.mark.timeout(400),
]

KILLS = {"none": 8, "thread": 12, "process": 8}
STEP_SITES = ("data.next", "step.begin", "step.backward", "step.update", "checkpoint.copy")
SAVE_SITES = ("checkpoint.write", "checkpoint.fsync", "checkpoint.rename", "checkpoint.remove")


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    environment = child_environment(XDG_CACHE_HOME=str(tmp_path_factory.mktemp("cache")))
    with Nursery("tests.kill_child", tmp_path_factory.mktemp("log") / "log", environment) as nursery:
        yield nursery


@pytest.fixture(scope="module")
def whole(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Return the folder of a run that nothing disturbed, and the seconds it took."""
    folders = [tmp_path_factory.mktemp("whole") / name for name in ("first", "run")]
    options = [{"folder": str(folder), "writer": "none"} for folder in folders]
    for death in (nursery.prepare(options[0]), nursery.live(options[1])):
        assert death.code == 0, death.log
    assert_same_end(*folders)
    return folders[1], death.died - death.born


class Run:
    """A run that lives several times, checked after each of its deaths."""

    def __init__(self, nursery: Nursery, folder: Path, writer: str) -> None:
        self.folder = folder
        self._nursery = nursery
        self._writer = writer
        self._lines_before = 0

    def live(self, **how: Any) -> Death:
        """Live until killed or done. What is on disk after that is whole, and the start was where the last save was."""
        before = self.committed()
        death = self._nursery.live({"folder": str(self.folder), "writer": self._writer}, **how)
        assert death.killed or death.code == 0, f"{how}: exit code {death.code} in a life after {before}\n{death.log}"
        assert "skipped checkpoint" not in death.log
        known = {0, *(ACCUMULATE * step for step in before)}
        if self._writer == "process":  # a writer that outlives the trainer for a moment may still commit
            known |= {ACCUMULATE * (before[0] + EVERY)} if before else set()
        starts = {int(start) for word, start in self._new_lines() if word == "start"}
        assert starts <= known and (not before or starts <= {0, *sorted(known)[-2:]}), (starts, known)
        for path in list_checkpoints(self.folder / "checkpoints"):
            try:
                load_checkpoint(path)
            except CheckpointError:
                assert not path.exists()  # that writer removed it meanwhile, which it does by one rename
        assert not before or self.committed()[0] >= before[0]
        assert (self.folder / "bundle").exists() == (death.code == 0) or death.killed
        return death

    def committed(self) -> list[int]:
        """Return the steps of the checkpoints on disk, newest first."""
        return [int(path.name.removeprefix("step_")) for path in list_checkpoints(self.folder / "checkpoints")]

    def _new_lines(self) -> list[list[str]]:
        lines = order_of(self.folder)[self._lines_before :]
        self._lines_before += len(lines)
        return lines


def order_of(folder: Path) -> list[list[str]]:
    path = folder.with_suffix(".order")
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def assert_same_end(run: Path, whole: Path) -> None:
    """Weights, optimizer, random state, bundle, losses, rates, norms and the order of the data agree bit by bit."""
    found, wanted = (
        load_file(list_checkpoints(path / "checkpoints")[0] / "state.safetensors") for path in (run, whole)
    )
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    assert (run / "bundle" / "model.safetensors").read_bytes() == (whole / "bundle" / "model.safetensors").read_bytes()
    assert rows(run) == rows(whole) and [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))
    order = {int(position): checksum for position, checksum in order_of(whole) if position != "start"}
    assert sorted(order) == list(range(len(order))) and len(order) >= STEPS * ACCUMULATE
    given = [(int(position), checksum) for position, checksum in order_of(run) if position != "start"]
    assert all(order.get(position, checksum) == checksum for position, checksum in given)
    assert {position for position, _ in given} >= set(range(STEPS * ACCUMULATE))
    assert not [path for path in run.rglob("*") if ".tmp-" in path.name or path.name == ".lock"]


def rows(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in {"seconds", "tokens_per_second"}} for row in lines]


def some_kill(chance: random.Random, writer: str, seconds: float) -> dict[str, Any]:
    """Return how a life of about `seconds` is to end before its time."""
    if chance.random() < 0.5:
        return {"kill_after": chance.uniform(0, seconds), "kill_group": chance.random() < 0.5}
    if writer == "process" or chance.random() < 0.4:  # a fault in the writer process would kill that alone
        return {"fault": f"{chance.choice(STEP_SITES)}:{chance.randint(1, STEPS // EVERY)}:kill"}
    return {"fault": f"{chance.choice(SAVE_SITES)}:{chance.randint(1, 12)}:kill"}


@pytest.mark.parametrize("writer", KILLS)
def test_killed_anywhere_it_ends_like_a_run_never_disturbed(
    writer: str, nursery: Nursery, whole: tuple[Path, float], tmp_path: Path
) -> None:
    reference, seconds = whole
    chance = random.Random(f"{writer} {os.environ.get('PYTEST_SEED', '0')}")
    kills = runs = 0
    while kills < KILLS[writer]:
        runs += 1
        run = Run(nursery, tmp_path / f"run{runs}", writer)
        while run.live(**(some_kill(chance, writer, seconds) if kills < KILLS[writer] else {})).killed:
            kills += 1
        assert_same_end(run.folder, reference)


def test_a_writer_process_that_dies_in_every_save_costs_checkpoints_and_not_the_run(
    nursery: Nursery, whole: tuple[Path, float], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    death = nursery.live({"folder": str(folder), "writer": "process"}, fault="checkpoint.rename:2/3:kill")
    assert death.code == 0, death.log
    assert "the process that writes checkpoints died" in death.log and "training goes on" in death.log
    assert_same_end(folder, whole[0])
