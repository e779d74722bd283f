"""What our training loop costs per step over a bare loop: a 2-layer MLP, 2,000 steps, the same maths.

`python -m benchmarks.step_overhead [--json] [--quick]`. Figures are extra microseconds per step, less is better.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence

from benchmarks.harness import Contestant, Match, Role
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

LIMIT_US, LIMIT_SHARE = 30.0, 0.01
TARGET = 5.0
FLOOR_US = 1.0
"""Overheads below this are noise and count as this much, so that a ratio exists."""
_NEEDS = {"lightning": "lightning", "hf-trainer": "transformers"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_overhead", description=__doc__)
    options, _ = parse_options(parser, argv, rounds=5, quick_rounds=2)
    announce("step_overhead: 2-layer MLP, 2,000 steps, microseconds per step over a bare loop", options)
    turns = "2" if options.quick else "4"
    roles: dict[str, Role] = {"ours": "ours", "lightning": "peer", "hf-trainer": "peer", "bare-loop": "reference"}
    match = Match(
        [
            Contestant(
                name,
                ("-m", "benchmarks.children.step_run", name, turns),
                role,
                env={"CUDA_VISIBLE_DEVICES": ""},
                needs=_NEEDS.get(name),
            )
            for name, role in roles.items()
        ],
        higher_is_better=False,
    )
    match.play(options.rounds)
    checks = [failure_check(match), quiet_check(match), agreement_check(match, "final_loss", 0.01), limit_check(match)]
    return finish(match, verdict(match, checks), options)


def limit_check(match: Match) -> Check:
    """Return the check that ours costs at most 30 us or 1% of a bare step, whichever is more."""
    summary = match.summary("ours")
    bare = [run.details["bare_us"] for run in match.runs["ours"]]
    if summary is None or not bare:
        return Check("microseconds per step over the bare loop", None, f"<= {LIMIT_US}", False)
    step = statistics.median(bare)
    limit = round(max(LIMIT_US, LIMIT_SHARE * step), 1)
    name = f"microseconds per step over the bare loop's {step:.0f}"
    return Check(name, summary.median, f"<= {limit}", summary.median <= limit)


def verdict(match: Match, checks: Sequence[Check]) -> Outcome:
    """Return the outcome; the ratio is the best peer's overhead over ours."""
    ours = match.summary("ours")
    peers = {name: found.median for name in match.ranking("peer") if (found := match.summary(name))}
    ratio = None if ours is None or not peers else max(min(peers.values()), FLOOR_US) / max(ours.median, FLOOR_US)
    return Outcome(
        name="step_overhead",
        unit="us/step over bare, less is better",
        ours=None if ours is None else ours.median,
        peers=peers,
        ratio=ratio,
        ratio_low=None,
        target=TARGET,
        checks=tuple(checks),
    )


if __name__ == "__main__":
    sys.exit(main())
