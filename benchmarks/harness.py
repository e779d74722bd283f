"""Plays ours against its peers: in turn (A B A B), each run in a fresh process, outputs compared, medians and ratio.

A contestant is a command that writes one JSON file `{"value", "outputs", "details"}`: the figure that counts, the
results that must agree between contestants, and whatever else is worth keeping. Fresh processes keep thread settings,
allocator settings and compiled code of one contestant away from the next.
Not here: what is measured (each benchmark's own file), verdict and printing (`benchmarks.scoreboard`).
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks import machine

ROOT = Path(__file__).resolve().parent.parent
ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592"
    ":glibc.malloc.trim_threshold=17179869184"
}
_CLEARED = ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "OMP_NUM_THREADS")
MAX_FOREIGN_LOAD = 0.1
"""A run during which other processes used more than this share of the machine is disturbed: it is played again."""
_JUDGED_SECONDS = 1.0
"""The system counts its time in ticks of 10 ms: the load beside a shorter run can't be told."""
_ATTEMPTS = 3
_QUIET = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

Role = Literal["ours", "peer", "reference"]


@dataclass(frozen=True)
class Contestant:
    """One side of a match. A "reference" is shown, but is never the peer that ours is held against."""

    name: str
    command: tuple[str, ...]
    """Arguments after `python`; the path of the result file is appended."""
    role: Role = "peer"
    env: Mapping[str, str] = field(default_factory=dict)
    needs: str | None = None
    """The distribution that this contestant can't run without."""


@dataclass(frozen=True)
class Run:
    """What one process of a contestant reported."""

    round: int
    value: float
    outputs: dict[str, float]
    details: dict[str, Any]
    seconds: float
    foreign_load: float | None

    @property
    def disturbed(self) -> bool:
        """Whether other processes used more of the machine than a fair figure allows."""
        judged = self.foreign_load is not None and self.seconds >= _JUDGED_SECONDS
        return judged and (self.foreign_load or 0.0) > MAX_FOREIGN_LOAD


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of a contestant's values."""

    median: float
    low: float
    high: float
    count: int


def summarise(values: Sequence[float]) -> Summary:
    """Return median and quartiles (inclusive method) of at least one value."""
    if len(values) == 1:
        return Summary(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(median, low, high, len(values))


def times_better(ours: float, peer: float, higher_is_better: bool) -> float:
    """Return how many times better `ours` is than `peer`: above 1 when ours wins. Both must be positive."""
    return ours / peer if higher_is_better else peer / ours


def relative_gap(values: Iterable[float]) -> float:
    """Return (largest - smallest) / smallest magnitude of `values`; infinite where one is not finite."""
    found = list(values)
    if not found or not all(math.isfinite(value) for value in found):
        return math.inf
    smallest = min(abs(value) for value in found)
    spread = max(found) - min(found)
    return spread / smallest if smallest else (math.inf if spread else 0.0)


class Match:
    """Rounds of runs. A contestant that fails drops out and the reason is kept."""

    def __init__(
        self,
        contestants: Sequence[Contestant],
        *,
        higher_is_better: bool = True,
        timeout: float = 600.0,
        say: Callable[[str], None] = print,
    ) -> None:
        self.contestants = {contestant.name: contestant for contestant in contestants}
        self.higher_is_better = higher_is_better
        self.runs: dict[str, list[Run]] = {name: [] for name in self.contestants}
        self.failures: dict[str, str] = {}
        self.rounds = 0
        self._timeout = timeout
        self._say = say

    def play(self, rounds: int, names: Iterable[str] | None = None) -> None:
        """Let the named contestants (all by default) run one after the other, `rounds` times."""
        chosen = list(self.contestants if names is None else names)
        for _ in range(rounds):
            self.rounds += 1
            for name in chosen:
                if name not in self.failures:
                    self._run(self.contestants[name])

    def summary(self, name: str) -> Summary | None:
        """Return the contestant's figures, None when it has no run."""
        runs = self.runs[name]
        return summarise([run.value for run in runs]) if runs else None

    def ranking(self, role: Role) -> list[str]:
        """Return the contestants of this role that have run, the best median first."""
        medians = {
            name: summary.median
            for name, contestant in self.contestants.items()
            if contestant.role == role and (summary := self.summary(name))
        }
        return sorted(medians, key=medians.__getitem__, reverse=self.higher_is_better)

    def best(self, role: Role) -> str | None:
        """Return the contestant of this role with the best median, None when none has run."""
        return next(iter(self.ranking(role)), None)

    def ratio(self, ours: str, peer: str) -> tuple[float, float] | None:
        """Return (ratio of the medians, lower quartile of the ratios of the rounds in which both ran)."""
        mine, theirs = self.summary(ours), self.summary(peer)
        if mine is None or theirs is None or min(mine.median, theirs.median) <= 0:
            return None
        peer_runs = {run.round: run.value for run in self.runs[peer]}
        pairs = [
            times_better(run.value, peer_runs[run.round], self.higher_is_better)
            for run in self.runs[ours]
            if run.round in peer_runs and min(run.value, peer_runs[run.round]) > 0
        ]
        ratio = times_better(mine.median, theirs.median, self.higher_is_better)
        return ratio, (summarise(pairs).low if pairs else ratio)

    def outputs(self, key: str, names: Iterable[str] | None = None) -> dict[str, float]:
        """Return each contestant's median of the output `key`; those that do not report it are left out."""
        medians = {}
        for name in names or self.contestants:
            values = [run.outputs[key] for run in self.runs[name] if key in run.outputs]
            if values:
                medians[name] = statistics.median(values)
        return medians

    def _run(self, contestant: Contestant) -> None:
        if contestant.needs and not _installed(contestant.needs):
            self.failures[contestant.name] = f"{contestant.needs} is not installed: pip install '.[bench]'"
            return
        attempts: list[Run] = []
        while len(attempts) < _ATTEMPTS and all(run.disturbed for run in attempts):
            try:
                attempts.append(self._attempt(contestant))
            except (ChildError, KeyError, TypeError, ValueError) as error:
                self.failures[contestant.name] = str(error) or type(error).__name__
                self._say(f"  round {self.rounds}  {contestant.name}: FAILED\n{error}")
                return
        self.runs[contestant.name].append(min(attempts, key=lambda run: run.foreign_load or 0.0))

    def _attempt(self, contestant: Contestant) -> Run:
        load, started = machine.ForeignLoad().start(), time.perf_counter()
        result = run_child(contestant, self._timeout)
        seconds = time.perf_counter() - started
        values = float(result["value"]), dict(result["outputs"]), dict(result.get("details", {}))
        run = Run(self.rounds, *values, round(seconds, 2), load.share())
        busy = "" if run.foreign_load is None else f", others used {run.foreign_load:.0%} of the machine"
        again = ": disturbed" if run.disturbed else ""
        self._say(f"  round {self.rounds}  {contestant.name:28} {run.value:>12,.6g}  ({seconds:.1f} s{busy}{again})")
        return run


class ChildError(Exception):
    """A contestant's process failed; the message ends with what it said last."""


def run_child(contestant: Contestant, timeout: float) -> dict[str, Any]:
    """Run the contestant in a fresh process and return what it wrote."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, *contestant.command, str(result)]
        try:
            done = subprocess.run(  # noqa: S603
                command,
                cwd=ROOT,
                env=child_environment(contestant.env),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ChildError(f"no result within {timeout:.0f} s") from None
        if done.returncode != 0 or not result.exists():
            said = (done.stderr.strip() or done.stdout.strip())[-1500:]
            raise ChildError(f"exit code {done.returncode}; it said:\n{said}")
        loaded: dict[str, Any] = json.loads(result.read_text())
        return loaded


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return our environment without allocator and thread settings, one thread per physical core, plus `extra`."""
    kept = {name: value for name, value in os.environ.items() if name not in _CLEARED}
    return {**kept, **_QUIET, "OMP_NUM_THREADS": str(machine.physical_cores()), **extra}


def with_allocator(contestants: Iterable[Contestant], both: bool) -> list[Contestant]:
    """Give each contestant the tuned allocator; with `both`, also a plain twin named `NAME (plain malloc)`.

    The plain twin of "ours" is a reference: it shows what the allocator brings.
    """
    twins: list[Contestant] = []
    for one in contestants:
        tuned = {**one.env, **ALLOCATOR}
        twins.append(Contestant(one.name, one.command, one.role, tuned, one.needs))
        if both:
            role: Role = "peer" if one.role == "peer" else "reference"
            twins.append(Contestant(f"{one.name} (plain malloc)", one.command, role, one.env, one.needs))
    return twins


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
