"""Which trainer survives SIGKILL at any moment: 200 kills each, saves included, and how fast each is back at work.

`python -m benchmarks.kill_anywhere [--json] [--quick]` (`--quick`: 25 kills each; `--kills N`). Every contestant trains
the same network with dropout on shuffled data and saves every second step, which is when most kills hit. Counted are
resumes that fail, checkpoints that a person has to remove, and runs that end with other weights than an undisturbed
one. The figure is the median time from the start of a new process, its imports done, to its first new step, with 115 MB
of weights and AdamW states, where each contestant saves as often as costs it 5% of its training time; less is better.
All are forked from a process that has loaded their libraries, and compute with one thread. Lightning is a reference: by
itself it restores neither the order of the data nor the random states, and here both are added by hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import Contestant, Match, Role
from benchmarks.scoreboard import Check, Outcome, announce, failure_check, finish, parse_options, quiet_check

TARGET, LIMIT_SECONDS = 2.0, 5.0
_MODULES: dict[str, tuple[str, Role, str | None]] = {
    "ours": ("kill_ours", "ours", None),
    "hf-trainer": ("kill_hf", "peer", "transformers"),
    "lightning": ("kill_lightning", "reference", "lightning"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill_anywhere", description=__doc__)
    parser.add_argument("--kills", type=int, help="kills for each contestant (default 200, with --quick 25)")
    options, found = parse_options(parser, argv, rounds=1, quick_rounds=1)
    kills = found.kills or (25 if options.quick else 200)
    announce(f"kill_anywhere: {kills} kills each, then seconds from a kill to the next new step", options)
    match = Match(
        [
            Contestant(
                name,
                ("-m", "benchmarks.children.kill_run", f"benchmarks.children.{module}", str(kills), "5"),
                role,
                env={"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
                needs=needs,
            )
            for name, (module, role, needs) in _MODULES.items()
        ],
        higher_is_better=False,
        timeout=7200.0,
    )
    match.play(options.rounds)
    for name in match.contestants:
        for run in match.runs[name]:
            print(f"  {name:12} {told(run.details)}")
    return finish(match, verdict(match, kills), options)


def told(details: dict[str, Any]) -> str:
    """Return a contestant's counts in words."""
    parts = [f"{details[name]} {words}" for name, words in _WORDS.items()]
    parts.append("{step_seconds:.3f} s a step, {save_seconds:.3f} s a save, every {save_every} steps".format(**details))
    return ", ".join(parts) + "".join(f"\n{'':15}{n} x {error}" for error, n in details["errors"].items())


_WORDS = {
    "kills": "kills",
    "resumes": "resumes",
    "failed": "failed",
    "by_hand": "checkpoints removed by hand",
    "runs": "runs",
    "other_weights": "ended with other weights",
}


def verdict(match: Match, kills: int) -> Outcome:
    """Return the outcome: every kill of ours survived, and how many times faster than HF Trainer it is back."""
    ours, peer = match.summary("ours"), match.summary("hf-trainer")
    details = [run.details for run in match.runs["ours"]]
    total = {name: sum(one[name] for one in details) for name in ("kills", "failed", "by_hand", "other_weights")}
    checks = [
        failure_check(match),
        quiet_check(match),
        Check("kills survived by ours", total["kills"], f">= {kills}", total["kills"] >= kills),
        *(Check(f"ours: {_WORDS[name]}", total[name], 0, bool(details) and total[name] == 0) for name in _BAD),
        Check(
            "seconds to the next new step",
            None if ours is None else ours.median,
            f"<= {LIMIT_SECONDS}",
            ours is not None and ours.median <= LIMIT_SECONDS,
        ),
    ]
    return Outcome(
        name="kill_anywhere",
        unit="s to the next new step, less is better",
        ours=None if ours is None else ours.median,
        peers={} if peer is None else {"hf-trainer": peer.median},
        ratio=None if ours is None or peer is None else peer.median / ours.median,
        ratio_low=None,
        target=TARGET,
        checks=tuple(checks),
    )


_BAD = ("failed", "by_hand", "other_weights")


if __name__ == "__main__":
    sys.exit(main())
