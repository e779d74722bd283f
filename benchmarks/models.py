"""Our templates against transformers' at equal configs and weights: forward, and forward and backward.

`python -m benchmarks.models [--case bert-base] [--mode eager] [--json] [--quick]`. BERT-base, GPT-2, a small Llama,
ViT-B/16 and ResNet-50, eager and compiled; and our mixture of experts in bfloat16 against a loop over experts, eager.
Milliseconds, less is better. Both sides read the same weights (2 GB in the temporary folder); their outputs and
gradients must agree.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

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

NAMES = ("bert-base", "gpt2-small", "llama-small", "vit-b16", "resnet50", "moe-64", "moe-256")
MODES = ("eager", "compiled")
TARGET, MOE_TARGET = 1.0, 2.0
TOLERANCE = {"output_norm": 1e-4, "gradient_norm": 1e-3}
MOE_TOLERANCE = {"output_norm": 1e-2, "gradient_norm": 1e-2}
"""The experts compute in bfloat16, and add up in another order."""


def tolerances(label: str) -> dict[str, float]:
    """Return how far apart a pair's outputs may be, relatively; the label begins with the model's name."""
    return MOE_TOLERANCE if label.startswith("moe") else TOLERANCE


class Pair(NamedTuple):
    """Two contestants that are held against each other."""

    label: str
    ours: str
    peer: str
    target: float


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
        pairs, contestants = field(names, modes, Path(folder))
        match = Match(contestants, higher_is_better=False)
        match.play(options.rounds)
    return finish(match, verdict(match, pairs), options, {"pairs": figures(match, pairs)})


def prepare(names: Sequence[str], folder: Path) -> None:
    """Write each model's weights to a folder of its own below `folder`."""
    from benchmarks.model_cases import CASES

    for name in names:
        if name in CASES:
            CASES[name].prepare(folder / name)


def field(names: Sequence[str], modes: Sequence[str], folder: Path) -> tuple[list[Pair], list[Contestant]]:
    """Return who is held against whom, and all contestants, each pair's two side by side."""
    pairs, contestants = [], []
    for name in names:
        peer, target = ("loop", MOE_TARGET) if name.startswith("moe") else ("theirs", TARGET)
        for mode in modes if peer != "loop" else [mode for mode in modes if mode == "eager"]:
            label = f"{name} {mode}"
            pairs.append(Pair(label, f"{label} ours", f"{label} {peer}", target))
            for side in ("ours", peer):
                command = ("-m", "benchmarks.children.models_run", name, mode, side, str(folder / name))
                contestants.append(
                    Contestant(
                        f"{label} {side}",
                        command,
                        "ours" if side == "ours" else "peer",
                        env={"CUDA_VISIBLE_DEVICES": ""},
                        needs="transformers" if side == "theirs" else None,
                    )
                )
    return pairs, contestants


def figures(match: Match, pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    """Return for each pair how many times faster ours is: `forward` and `train`; without a figure where one failed."""
    found: dict[str, dict[str, float]] = {}
    for pair in pairs:
        ratios = {}
        for name, key in (("forward", "forward_ms"), ("train", "train_ms")):
            medians = match.outputs(key, (pair.ours, pair.peer))
            if len(medians) == 2:
                ratios[name] = medians[pair.peer] / medians[pair.ours]
        found[pair.label] = ratios
    return found


def verdict(match: Match, pairs: Sequence[Pair]) -> Outcome:
    """Return the outcome; its ratio is the smallest of all, each as a share of its own target."""
    checks = [failure_check(match), quiet_check(match)]
    shares: list[tuple[float, Pair]] = []
    ratios = figures(match, pairs)
    for pair in pairs:
        for name in ("forward", "train"):
            ratio = ratios[pair.label].get(name)
            what = f"{pair.label}: {name}, times faster than {pair.peer.rpartition(' ')[2]}"
            checks.append(Check(what, ratio, f">= {pair.target}", ratio is not None and ratio >= pair.target))
            if ratio is not None:
                shares.append((ratio / pair.target, pair))
        for key, tolerance in tolerances(pair.label).items():
            check = agreement_check(match, key, tolerance, (pair.ours, pair.peer))
            checks.append(dataclasses.replace(check, name=f"{pair.label}: {check.name}"))
    complete = len(shares) == 2 * len(pairs) and bool(pairs)
    share, tightest = min(shares, default=(None, None))
    ours = match.summary(tightest.ours) if tightest else None
    peer = match.summary(tightest.peer) if tightest else None
    return Outcome(
        name="models",
        unit="ms of forward and backward, less is better",
        ours=None if ours is None else ours.median,
        peers={} if tightest is None or peer is None else {tightest.peer: peer.median},
        ratio=share if complete else None,
        ratio_low=None,
        target=1.0,
        checks=tuple(checks),
    )


if __name__ == "__main__":
    sys.exit(main())
