"""The data road against its peers, part by part: features, images, deduplication, HDF5, tokens and more.

`python -m benchmarks.data [--case features] [--json] [--quick]`. Items per second, more is better. Each part is a file
in `benchmarks/data_cases/` and says itself who its peers are and what must agree.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

from benchmarks.data_cases.case import OURS, Case, Measure
from benchmarks.harness import Contestant, Match
from benchmarks.scoreboard import (
    Check,
    Outcome,
    agreement_check,
    announce,
    failure_check,
    finish,
    parse_options,
    quiet_check,
)

NAMES = tuple(
    sorted(
        path.stem
        for path in (Path(__file__).parent / "data_cases").glob("*.py")
        if path.stem not in ("__init__", "case")
    )
)


class Entry(NamedTuple):
    """A measure of a case; contestants are named `case measure contestant` in the match."""

    case: str
    measure: Measure

    def label(self, contestant: str) -> str:
        """Return the contestant's name in the match."""
        return f"{self.case} {self.measure.name} {contestant}"

    @property
    def peers(self) -> tuple[str, ...]:
        """Names in the match of those that ours is held against."""
        return tuple(self.label(peer) for peer in self.measure.targets)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("--case", choices=NAMES, action="append", help="only this part (may be given again)")
    options, chosen = parse_options(parser, argv, rounds=5, quick_rounds=2)
    announce("data: items per second, ours and peers'", options)
    entries: list[Entry] = []
    with tempfile.TemporaryDirectory(prefix="bench-data-") as folder:
        for name in chosen.case or NAMES:
            case = cast(Case, importlib.import_module(f"benchmarks.data_cases.{name}"))
            (Path(folder) / name).mkdir()
            case.prepare(Path(folder) / name, options.quick)
            entries += [Entry(name, measure) for measure in case.MEASURES]
        match = Match([one for entry in entries for one in contestants(entry, Path(folder), options.quick)])
        match.play(options.rounds)
    return finish(match, verdict(match, entries), options, {"ratios": ratios(match, entries)})


def contestants(entry: Entry, folder: Path, quick: bool) -> list[Contestant]:
    """Return ours and the others of one measure, side by side."""
    measure = entry.measure
    found = []
    for name in (OURS, *measure.targets, *measure.references):
        command = ("-m", "benchmarks.children.data_run", entry.case, measure.name, name)
        found.append(
            Contestant(
                entry.label(name),
                (*command, str(folder / entry.case), str(int(quick))),
                "ours" if name == OURS else "reference" if name in measure.references else "peer",
                env={"CUDA_VISIBLE_DEVICES": ""},
                needs=measure.needs.get(name),
            )
        )
    return found


def ratios(match: Match, entries: Sequence[Entry]) -> dict[str, float]:
    """Return how many times faster ours is than each peer; a pair without a figure is left out."""
    found = {}
    for entry in entries:
        for peer in entry.peers:
            pair = match.ratio(entry.label(OURS), peer)
            if pair is not None:
                found[peer] = pair[0]
    return found


def verdict(match: Match, entries: Sequence[Entry]) -> Outcome:
    """Return the outcome; its ratio is the smallest of all, each as a share of its own target."""
    checks = [failure_check(match), quiet_check(match)]
    found = ratios(match, entries)
    shares: list[tuple[float, Entry, str]] = []
    for entry in entries:
        for peer, target in entry.measure.targets.items():
            label = entry.label(peer)
            ratio = found.get(label)
            checks.append(Check(f"times {label}", ratio, f">= {target}", ratio is not None and ratio >= target))
            shares.append(((ratio or 0.0) / target, entry, label))
        checks += output_checks(match, entry)
    share, tightest, peer = min(shares, key=lambda found: found[0]) if shares else (None, None, "")
    ours = match.summary(tightest.label(OURS)) if tightest else None
    theirs = match.summary(peer) if tightest else None
    return Outcome(
        name="data",
        unit="items per second, more is better",
        ours=None if ours is None else ours.median,
        peers={} if theirs is None else {peer: theirs.median},
        ratio=share,
        ratio_low=None,
        target=1.0,
        checks=tuple(checks),
    )


def output_checks(match: Match, entry: Entry) -> list[Check]:
    """Return the checks of what the contestants of one measure put out."""
    measure, ours = entry.measure, entry.label(OURS)
    checks = []
    for key, tolerance in measure.tolerance.items():
        names = [entry.label(name) for name in (OURS, *measure.targets, *measure.references)]
        check = agreement_check(match, key, tolerance, names)
        checks.append(Check(f"{entry.case} {measure.name}: {check.name}", check.found, check.wanted, check.ok))
    bounds = [(key, "at least", value) for key, value in measure.at_least.items()]
    bounds += [(key, "at most", value) for key, value in measure.at_most.items()]
    bounds += [
        (key, "at least", value) for key in measure.no_worse for value in match.outputs(key, entry.peers).values()
    ]
    for key, side, bound in bounds:
        value = match.outputs(key, [ours]).get(ours)
        ok = value is not None and (value >= bound if side == "at least" else value <= bound)
        checks.append(Check(f"{entry.case} {measure.name}: {key}", value, f"{side} {bound:.6g}", ok))
    return checks


if __name__ == "__main__":
    sys.exit(main())
