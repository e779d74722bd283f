"""Pruning half of the channels: the loss after recovery against torch-pruning's example flow, and what it buys.

`python -m benchmarks.prune [--json] [--quick]`. A small ResNet on digits, trained, then pruned in three steps with
training after each; the loss on digits held out, less is better. The peers are torch-pruning's MetaPruner with the
optimizer of its example, and with the one ours uses. ResNet-50 and BERT-base are timed whole and pruned, in turns.
Needs DEEPSEEK_TEST_DATA (the folder with `vision/mnist_t10k`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

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

PEERS = ("torch-pruning sgd", "torch-pruning adamw")
SPEED = {"resnet50": 1.5, "bert-base": 1.3}
"""Templates and how many times faster they must be at half of their channels, heads and widths."""
TARGET = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prune", description=__doc__)
    options, _ = parse_options(parser, argv, rounds=2, quick_rounds=1)
    announce("prune: loss after recovery", options)
    command = ("-m", "benchmarks.children.prune_run")
    losses = [
        Contestant("ours", (*command, "ours"), "ours"),
        *[Contestant(name, (*command, name), "peer", needs="torch-pruning") for name in PEERS],
    ]
    timed = [Contestant(name, (*command, name), "reference") for name in SPEED]
    match = Match([*losses, *timed], higher_is_better=False, timeout=1800)
    match.play(options.rounds)
    return finish(match, verdict(match), options)


def verdict(match: Match) -> Outcome:
    """Return the outcome; the ratio is the best peer's loss over ours."""
    ours, best = match.summary("ours"), match.best("peer")
    ratio = match.ratio("ours", best) if best else None
    checks = [failure_check(match), quiet_check(match)]
    checks.append(agreement_check(match, "dense_loss", 1e-3, ["ours", *PEERS]))
    checks.append(agreement_check(match, "parameters", 0.05, ["ours", *PEERS]))
    for name, wanted in SPEED.items():
        faster = match.outputs("times_faster", [name]).get(name)
        smaller = match.outputs("size_ratio", [name]).get(name)
        ok = faster is not None and faster >= wanted
        checks.append(Check(f"{name}: times faster at half of the channels", faster, f">= {wanted}", ok))
        checks.append(Check(f"{name}: share of the weights", smaller, "< 0.75", smaller is not None and smaller < 0.75))
    return Outcome(
        name="prune",
        unit="loss after recovery (or ms), less is better",
        ours=None if ours is None else ours.median,
        peers={name: found.median for name in PEERS if (found := match.summary(name))},
        ratio=None if ratio is None else ratio[0],
        ratio_low=None if ratio is None else ratio[1],
        target=TARGET,
        checks=tuple(checks),
    )


if __name__ == "__main__":
    sys.exit(main())
