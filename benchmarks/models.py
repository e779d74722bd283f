"""Our templates against transformers' at equal configs and weights: forward, and forward and backward.

`python -m benchmarks.models [--case bert-base] [--mode eager] [--json] [--quick]`. BERT-base, GPT-2, a small Llama,
ViT-B/16 and ResNet-50, eager and compiled; and our mixture of experts in bfloat16 against a loop over experts, eager.
Milliseconds, less is better. Both sides read the same weights (2 GB in the temporary folder), run in turns in one
process with the allocator set for large blocks (without, the pages they happen to get weigh more than the code); their
outputs and gradients must agree.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import ALLOCATOR, Contestant, Match
from benchmarks.scoreboard import Check, Outcome, announce, failure_check, finish, parse_options, quiet_check

NAMES = ("bert-base", "gpt2-small", "llama-small", "vit-b16", "resnet50", "moe-64", "moe-256")
MODES = ("eager", "compiled")
TARGET, MOE_TARGET = 1.0, 2.0
TOLERANCE = {"output_gap": 1e-4, "gradient_gap": 1e-3}
MOE_TOLERANCE = {"output_gap": 1e-2, "gradient_gap": 1e-2}
"""The experts compute in bfloat16, and add up in another order."""


def tolerances(label: str) -> dict[str, float]:
    """Return how far apart the two sides may be, relatively; the label begins with the model's name."""
    return MOE_TOLERANCE if label.startswith("moe") else TOLERANCE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("--case", choices=NAMES, action="append", help="only this model (may be given again)")
    parser.add_argument("--mode", choices=MODES, action="append", help="only eager, or only compiled")
    options, chosen = parse_options(parser, argv, rounds=5, quick_rounds=1)
    announce("models: milliseconds of a pass, ours and transformers'", options)
    names, modes = chosen.case or NAMES, chosen.mode or (MODES[:1] if options.quick else MODES)
    with tempfile.TemporaryDirectory(prefix="bench-models-") as folder:
        prepare(names, Path(folder))
        match = Match(field(names, modes, Path(folder)), higher_is_better=False)
        match.play(options.rounds)
    return finish(match, verdict(match), options, {"ratios": figures(match)})


def prepare(names: Sequence[str], folder: Path) -> None:
    """Write each model's weights to a folder of its own below `folder`."""
    from benchmarks.model_cases import CASES

    for name in names:
        if name in CASES:
            CASES[name].prepare(folder / name)


def field(names: Sequence[str], modes: Sequence[str], folder: Path) -> list[Contestant]:
    """Return a contestant for each model and mode; it plays both sides in turns."""
    return [
        Contestant(
            f"{name} {mode}",
            ("-m", "benchmarks.children.models_run", name, mode, str(folder / name)),
            "ours",
            env={"CUDA_VISIBLE_DEVICES": "", **ALLOCATOR},
            needs=None if name.startswith("moe") else "transformers",
        )
        for name in names
        for mode in modes
        if mode == "eager" or not name.startswith("moe")
    ]


def figures(match: Match) -> dict[str, dict[str, float]]:
    """Return how many times faster ours is, `forward` and `train`, of each contestant that ran."""
    found = {}
    for label, runs in match.runs.items():
        if runs:
            keys = {"forward": "forward_ratio", "train": "train_ratio"}
            found[label] = {name: match.outputs(key, [label])[label] for name, key in keys.items()}
    return found


def verdict(match: Match) -> Outcome:
    """Return the outcome; its ratio is the smallest of all, each as a share of its own target."""
    checks = [failure_check(match), quiet_check(match)]
    shares: list[tuple[float, str]] = []
    for label, ratios in figures(match).items():
        target = MOE_TARGET if label.startswith("moe") else TARGET
        for name, ratio in ratios.items():
            checks.append(Check(f"{label}: {name}, times faster", ratio, f">= {target}", ratio >= target))
            shares.append((ratio / target, label))
        for key, tolerance in tolerances(label).items():
            gap = match.outputs(key, [label])[label]
            checks.append(Check(f"{label}: {key.replace('_', ' ')}", gap, f"<= {tolerance}", gap <= tolerance))
    share, tightest = min(shares, default=(None, None))
    ours = match.summary(tightest) if tightest else None
    return Outcome(
        name="models",
        unit="ms of our forward and backward, less is better",
        ours=None if ours is None else ours.median,
        peers={} if tightest is None else {f"{tightest} peer": match.outputs("peer_train_ms", [tightest])[tightest]},
        ratio=share if len(shares) == 2 * len(match.runs) else None,
        ratio_low=None,
        target=1.0,
        checks=tuple(checks),
    )


if __name__ == "__main__":
    sys.exit(main())
