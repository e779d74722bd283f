"""Binary layers by XOR and popcount against the same layers in fp32, bf16 and int8: milliseconds, less is better.

`python -m benchmarks.binary [--case NAME] [--json] [--quick]`. The layers of a ResNet's stages and of a transformer.
Every output must equal the floating-point meaning of the layer to the bit; the ratio is the geometric mean over the
layers against fp32 eager. Not here: accuracy (binary models have to be trained as such).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence

from benchmarks.children.binary_run import CASES
from benchmarks.harness import Contestant, Match
from benchmarks.scoreboard import Check, Outcome, announce, failure_check, finish, parse_options, quiet_check

TARGET = 6.5
SMALLER = 16.0
PEERS = ("fp32", "bf16", "int8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.binary", description=__doc__)
    parser.add_argument("--case", choices=list(CASES), action="append", help="only this layer (may be given again)")
    options, chosen = parse_options(parser, argv, rounds=5, quick_rounds=1)
    announce("binary: milliseconds of a layer, against fp32, bf16 and int8", options)
    match = Match(field(chosen.case or list(CASES)), higher_is_better=False)
    match.play(options.rounds)
    return finish(match, verdict(match), options, {"ratios": figures(match)})


def field(names: Sequence[str]) -> list[Contestant]:
    """Return a contestant for each layer; it plays all forms in turns."""
    return [Contestant(name, ("-m", "benchmarks.children.binary_run", name), "ours") for name in names]


def figures(match: Match) -> dict[str, dict[str, float]]:
    """Return how many times faster binary is than each other form, for each layer that ran."""
    return {
        label: {peer: match.outputs(f"{peer}_ratio", [label])[label] for peer in PEERS}
        for label, runs in match.runs.items()
        if runs
    }


def verdict(match: Match) -> Outcome:
    """Return the outcome: the mean speed-up over fp32, equal outputs, and the size."""
    found = figures(match)
    checks = [failure_check(match), quiet_check(match)]
    for label, ratios in found.items():
        for peer, ratio in ratios.items():
            judged = peer != "int8"  # whose inputs come quantized: shown, not judged
            wanted = "> 1.0" if judged else "shown"
            checks.append(Check(f"{label}: times faster than {peer}", ratio, wanted, ratio > 1.0 or not judged))
        different = match.outputs("different", [label])[label]
        checks.append(Check(f"{label}: outputs that differ from floating point", different, "0", different == 0))
        size = match.outputs("size_ratio", [label])[label]
        checks.append(Check(f"{label}: times smaller", size, f">= {SMALLER:g}", size >= SMALLER))
    whole = len(found) == len(match.runs) and found
    slowest = min(found, key=lambda label: found[label]["fp32"], default=None)
    ours = match.summary(slowest) if slowest else None
    return Outcome(
        name="binary",
        unit="ms of the binary layer, less is better",
        ours=None if ours is None else ours.median,
        peers={f"{slowest} {peer}": ours.median * found[slowest][peer] for peer in PEERS} if ours and slowest else {},
        ratio=statistics.geometric_mean([ratios["fp32"] for ratios in found.values()]) if whole else None,
        ratio_low=min(ratios["fp32"] for ratios in found.values()) if whole else None,
        target=TARGET,
        checks=tuple(checks),
    )


if __name__ == "__main__":
    sys.exit(main())
