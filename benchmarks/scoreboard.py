"""The verdict of a match and how it is told: options, table, one JSON line, one record in `benchmarks/results/`.

Not here: running contestants (`benchmarks.harness`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine
from benchmarks.harness import MAX_FOREIGN_LOAD, ROOT, Match, relative_gap

RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Check:
    """One condition of a benchmark, with the value found and the value wanted."""

    name: str
    found: object
    wanted: object
    ok: bool


@dataclass(frozen=True)
class Outcome:
    """The verdict: `ratio` is how many times better ours is than the best peer, None where it can't be formed."""

    name: str
    unit: str
    ours: float | None
    peers: dict[str, float]
    ratio: float | None
    ratio_low: float | None
    target: float
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether the ratio reaches the target and every check holds."""
        return self.ratio is not None and self.ratio >= self.target and all(check.ok for check in self.checks)

    def line(self) -> dict[str, object]:
        """Return the mapping that `--json` prints."""
        return {
            "name": self.name,
            "ours": _rounded(self.ours),
            "peers": {name: _rounded(value) for name, value in self.peers.items()},
            "ratio": _rounded(self.ratio),
            "target": self.target,
            "ok": self.ok,
        }


@dataclass(frozen=True)
class Options:
    """What the command line of a benchmark asks for."""

    json: bool
    quick: bool
    rounds: int


def parse_options(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, rounds: int, quick_rounds: int
) -> tuple[Options, argparse.Namespace]:
    """Add `--json --quick --rounds` to `parser` and parse `argv`; the defaults of `--rounds` are given."""
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line at the end")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and contestants, for a first look")
    parser.add_argument("--rounds", type=int, help=f"rounds to play (default {rounds}, with --quick {quick_rounds})")
    found = parser.parse_args(argv)
    chosen = found.rounds if found.rounds is not None else (quick_rounds if found.quick else rounds)
    if chosen < 1:
        parser.error(f"--rounds is {found.rounds}; it must be at least 1")
    return Options(found.json, found.quick, chosen), found


def announce(title: str, options: Options) -> None:
    """Print what is run on what, after waiting a while for other processes to end."""
    share = machine.wait_until_quiet(limit=0.1, patience=5.0 if options.quick else 60.0)
    hardware = machine.hardware()
    print(f"{title}  ({'quick, ' if options.quick else ''}{options.rounds} rounds)")
    print(f"  {hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB, {hardware['system']}")
    print("  " + ", ".join(f"{name} {version}" for name, version in machine.versions().items()))
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"  load average {load}; others use " + ("?" if share is None else f"{share:.0%}") + " of the machine now")
    if share is not None and share > 0.1:
        print("  WARNING: the machine is not quiet; the figures below are worth little")


def finish(match: Match, outcome: Outcome, options: Options, extra: Mapping[str, object] | None = None) -> int:
    """Print the table, append the record to `results/NAME.jsonl`, print the JSON line; return the exit code."""
    print(render(match, outcome))
    record = {
        **outcome.line(),
        "unit": outcome.unit,
        "ratio_low": _rounded(outcome.ratio_low),
        "checks": [asdict(check) for check in outcome.checks],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "quick": options.quick,
        "rounds": options.rounds,
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "hardware": machine.hardware(),
        "versions": machine.versions(),
        "failures": match.failures,
        "runs": {name: [asdict(run) for run in runs] for name, runs in match.runs.items()},
        **(extra or {}),
    }
    append_record(RESULTS / f"{outcome.name}.jsonl", record)
    if options.json:
        print(json.dumps(outcome.line()))
    return 0 if outcome.ok else 1


def append_record(path: Path, record: Mapping[str, object]) -> None:
    """Append `record` to a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_plain(record), ensure_ascii=False) + "\n")


def render(match: Match, outcome: Outcome) -> str:
    """Return the readable table: contestants with quartiles, then the checks, then the verdict."""
    lines = ["", f"  {'contestant':30} {'median':>12} {'low':>12} {'high':>12}  runs  {outcome.unit}"]
    for name, contestant in match.contestants.items():
        if summary := match.summary(name):
            figures = f"{summary.median:>12,.5g} {summary.low:>12,.5g} {summary.high:>12,.5g}  {summary.count:>4}"
            lines.append(f"  {name:30} {figures}  {contestant.role}")
        elif name in match.failures:
            lines.append(f"  {name:30} did not run: {match.failures[name].strip().splitlines()[-1]}")
    lines.append("")
    for check in outcome.checks:
        found = f"{check.found:.4g}" if isinstance(check.found, float) else check.found
        lines.append(f"  {'ok  ' if check.ok else 'FAIL'}  {check.name}: {found} (wanted {check.wanted})")
    ratio = "no ratio" if outcome.ratio is None else f"{outcome.ratio:.3f}x the best peer"
    low = "" if outcome.ratio_low is None else f", lower quartile of the rounds {outcome.ratio_low:.3f}"
    lines.append(f"  {'ok  ' if outcome.ok else 'FAIL'}  {outcome.name}: {ratio} (target {outcome.target}{low})")
    return "\n".join(lines)


def failure_check(match: Match) -> Check:
    """Return the check that every contestant ran."""
    found = ", ".join(sorted(match.failures)) or "none"
    return Check("contestants that did not run", found, "none", not match.failures)


def quiet_check(match: Match) -> Check:
    """Return the check that other processes left the machine alone in every run that counts."""
    disturbed = sorted({name for name, runs in match.runs.items() for run in runs if run.disturbed})
    wanted = f"none above {MAX_FOREIGN_LOAD:.0%}"
    return Check("contestants disturbed by other processes", ", ".join(disturbed) or "none", wanted, not disturbed)


def agreement_check(match: Match, key: str, tolerance: float, names: Iterable[str] | None = None) -> Check:
    """Return the check that the output `key` of the named contestants agrees within a relative `tolerance`."""
    values = match.outputs(key, names)
    gap = relative_gap(values.values())
    ok = len(values) > 1 and gap <= tolerance
    name = f"{key.replace('_', ' ')} agrees" if ok else f"{key.replace('_', ' ')} DIFFERS: {_listed(values)}; gap"
    return Check(name, gap, f"<= {tolerance}", ok)


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.5g}" for name, value in values.items()) or "nothing reported"


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _plain(value: object) -> object:
    """Replace what strict JSON lacks (NaN, infinities) by None, all the way down."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
