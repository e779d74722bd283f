"""Memory of calibration: KL ranges of BERT-base over 512 samples of 128 tokens, in GiB above the model.

`python -m benchmarks.calibration_memory [--json] [--quick]`. The target is an absolute one, 1.5 GiB, copy included;
a run on an eighth of the samples must take as much, since nothing may grow with the data. Others keep what they saw:
microsoft/onnxruntime #10503 reports 123 GB.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.harness import Contestant, Match
from benchmarks.scoreboard import Check, Outcome, announce, failure_check, finish, parse_options

LIMIT_GIB = 1.5
MOST_GROWTH_GIB = 0.15
FEW, MANY = 64, 512


def main(argv: Sequence[str] | None = None) -> int:
    """Run both sizes; returns 0 when the target is met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration_memory", description=__doc__)
    options, _ = parse_options(parser, argv, rounds=1, quick_rounds=1)
    announce("calibration_memory: KL calibration of BERT-base, GiB above the model", options)
    many = 2 * FEW if options.quick else MANY
    match = Match([_of(FEW, "reference"), _of(many, "ours")], higher_is_better=False, timeout=1800)
    match.play(options.rounds)
    values = {name: match.runs[name][0].value for name in (f"{FEW} samples", f"{many} samples") if match.runs[name]}
    ours = values.get(f"{many} samples")
    checks = [failure_check(match)]
    if len(values) == 2:
        growth = values[f"{many} samples"] - values[f"{FEW} samples"]
        checks.append(Check("growth with the data, GiB", growth, f"<= {MOST_GROWTH_GIB}", growth <= MOST_GROWTH_GIB))
    ratio = None if ours is None else LIMIT_GIB / ours
    outcome = Outcome("calibration_memory", "GiB", ours, {}, ratio, ratio, 1.0, tuple(checks))
    return finish(match, outcome, options)


def _of(samples: int, role: str) -> Contestant:
    command = ("-m", "benchmarks.children.calibration_run", str(samples))
    return Contestant(f"{samples} samples", command, "ours" if role == "ours" else "reference")


if __name__ == "__main__":
    sys.exit(main())
