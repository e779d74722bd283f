"""What a checkpoint costs: how long training waits, how fast it is written and loaded; 124M parameters with Adam.

`python -m benchmarks.checkpoint [--quick] [--json]`. The figure is seconds from the call to the end of writing, less is
better; for ours they include checksums and syncing to the disk, which the peers are spared. `--quick` saves a fifth.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence

from benchmarks.harness import Contestant, Match, Role
from benchmarks.scoreboard import Check, Outcome, announce, failure_check, finish, parse_options, quiet_check

TARGET = 1.0
BLOCKED_PER_COPY, BLOCKED_SHARE = 1.2, 0.15
ROLES: dict[str, Role] = {
    "ours": "ours",
    "torch.save": "peer",
    "safetensors": "peer",
    "safetensors, synced": "reference",
    "dcp.save": "peer",
    "dcp.async_save": "peer",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__)
    options, _ = parse_options(parser, argv, rounds=5, quick_rounds=1)
    announce("checkpoint: GPT-2 with Adam, seconds until a checkpoint is written", options)
    share = "0.2" if options.quick else "1"
    match = Match(
        [
            Contestant(name, ("-m", "benchmarks.children.checkpoint_run", name, share), role)
            for name, role in ROLES.items()
        ],
        higher_is_better=False,
    )
    match.play(options.rounds)
    return finish(match, verdict(match), options, {"seconds": details(match)})


def details(match: Match) -> dict[str, dict[str, float]]:
    """Return each contestant's median of every figure."""
    return {
        name: {key: statistics.median(run.details[key] for run in runs) for key in runs[0].details}
        for name, runs in match.runs.items()
        if runs
    }


def verdict(match: Match) -> Outcome:
    """Return the outcome; the ratio is the quickest peer's seconds until all is written over ours."""
    best = match.best("peer")
    ratio = match.ratio("ours", best) if best else None
    summary = match.summary("ours")
    wrong = match.outputs("wrong_tensors")
    checks = [
        failure_check(match),
        quiet_check(match),
        Check("tensors that came back other than they were", sum(wrong.values()), "0", not any(wrong.values())),
        *time_checks(details(match)),
    ]
    return Outcome(
        name="checkpoint",
        unit="s until written, less is better",
        ours=summary.median if summary else None,
        peers={name: found.median for name in match.ranking("peer") if (found := match.summary(name))},
        ratio=ratio[0] if ratio else None,
        ratio_low=ratio[1] if ratio else None,
        target=TARGET,
        checks=tuple(checks),
    )


def time_checks(found: dict[str, dict[str, float]]) -> list[Check]:
    """Return the checks on how long training waits, and on loading."""
    own, plain, file = found.get("ours"), found.get("torch.save"), found.get("safetensors")
    if own is None or plain is None or file is None:
        return []
    copies = own["blocked_per_copy"]
    share, first = own["blocked_s"] / plain["total_s"], own["first_blocked_s"] / plain["first_total_s"]
    others = {name: one["blocked_s"] for name, one in found.items() if name != "ours"}
    least = min(others, key=others.__getitem__)
    wait = others[least] / own["blocked_s"]
    load = file["load_cold_s"] / own["load_cold_s"]
    synced = found.get("safetensors, synced", file)["total_s"] / own["total_s"]
    return [
        Check(
            "training waits, in copies of the state in memory",
            copies,
            f"<= {BLOCKED_PER_COPY}",
            copies <= BLOCKED_PER_COPY,
        ),
        Check("training waits, as a share of torch.save", share, f"<= {BLOCKED_SHARE}", share <= BLOCKED_SHARE),
        Check(
            "the first save of a run, as a share of torch.save's", first, f"<= {BLOCKED_SHARE}", first <= BLOCKED_SHARE
        ),
        Check(f"training waits, times less than with {least}", wait, ">= 1", wait >= 1),
        Check("written and synced, times faster than safetensors synced", synced, ">= 1", synced >= 1),
        Check("loading from the disk, checked, times faster than safetensors unchecked", load, ">= 1", load >= 1),
    ]


if __name__ == "__main__":
    sys.exit(main())
