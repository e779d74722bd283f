"""Serving language models on a CPU: ours against transformers' generate and llama.cpp, and against itself.

`python -m benchmarks.serve_llm [--case hf] [--shape gpt2-124m] [--json] [--quick]`. One text at a time (`hf`,
`llama.cpp-16`, `-8`, `-4`), 16 mixed requests (`mixed`), shared beginnings (`prefix-90`, `prefix-0`), the time to the
first token at 4 streams (`first-token`). Random weights of real models' sizes, the same on all sides; logits are held
against transformers' in float32.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Contestant, Match
from benchmarks.scoreboard import Check, Outcome, announce, failure_check, finish, parse_options, quiet_check

RATIOS = {
    "hf": 1.5,
    "llama.cpp-16": 1.0,
    "llama.cpp-8": 1.0,
    "llama.cpp-4": 1.0,
    "mixed": 3.0,
    "prefix-90": 2.5,
    "prefix-0": 0.99,
}
"""How many times better ours must be."""
FIRST_TOKEN_MS = 100.0
CASES = (*RATIOS, "first-token")
SHAPES = ("gpt2-124m", "llama-135m", "llama-0.5b")
_SINGLE = ("hf", "llama.cpp-16", "llama.cpp-8", "llama.cpp-4")
_WORSE = {"llama.cpp-16": 8.0}
"""Our logits may be at most this many times (1.25 elsewhere) as far from the exact ones as the peer's.

Against f16 it is three bits: bf16, in which such models are trained, has so many fewer.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_llm", description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="only this case (may be given again)")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="only this model (may be given again)")
    options, chosen = parse_options(parser, argv, rounds=3, quick_rounds=1)
    announce("serve_llm: language models served on the CPU", options)
    shapes = chosen.shape or (SHAPES[:2] if options.quick else SHAPES)
    with tempfile.TemporaryDirectory(prefix="bench-serve-llm-") as folder:
        prepare(shapes, Path(folder))
        match = Match(field(chosen.case or CASES, shapes, Path(folder)))
        match.play(options.rounds)
    return finish(match, verdict(match), options)


def prepare(shapes: Sequence[str], folder: Path) -> None:
    """Write each model's weights to a folder of its own below `folder`."""
    from benchmarks.serve_llm_cases.shapes import SHAPES as KNOWN

    for name in shapes:
        KNOWN[name].prepare(folder / name)


def field(cases: Sequence[str], shapes: Sequence[str], folder: Path) -> list[Contestant]:
    """Return a contestant for each case and model; cases of many texts are for the first model alone."""
    return [
        Contestant(
            f"{case} {shape}",
            ("-m", "benchmarks.serve_llm_cases.run", case, shape, str(folder / shape)),
            "ours",
            env={"CUDA_VISIBLE_DEVICES": ""},
            needs="llama-cpp-python" if case.startswith("llama.cpp") else "transformers",
        )
        for case in cases
        for shape in (shapes if case in _SINGLE else shapes[:1])
    ]


def verdict(match: Match) -> Outcome:
    """Return the outcome; its ratio is the smallest of all, each as a share of its own target."""
    checks = [failure_check(match), quiet_check(match)]
    shares: list[tuple[float, str]] = []
    for label, runs in match.runs.items():
        case = label.split()[0]
        summary = match.summary(label)
        if not runs or summary is None:
            continue
        if case == "first-token":
            found, wanted = summary.median, FIRST_TOKEN_MS
            checks.append(Check(f"{label}: median ms", found, f"< {wanted}", found < wanted))
            shares.append((wanted / found, label))
            continue
        ratio, target = match.outputs("ratio", [label])[label], RATIOS[case]
        checks.append(Check(f"{label}: times the peer", ratio, f">= {target}", ratio >= target))
        shares.append((ratio / target, label))
        if case in _SINGLE:
            ours, theirs = (match.outputs(key, [label])[label] for key in ("our_gap", "their_gap"))
            most = _WORSE.get(case, 1.25) * theirs
            checks.append(Check(f"{label}: gap to exact logits", ours, f"<= {most:.4g}", ours <= most))
    share, tightest = min(shares, default=(None, None))
    summary = match.summary(tightest) if tightest else None
    peer = match.outputs("peer", [tightest]) if tightest else {}
    return Outcome(
        name="serve_llm",
        unit="tokens/s (hf, llama.cpp, mixed), requests/s (prefix) or ms (first token)",
        ours=None if summary is None else summary.median,
        peers={f"{label} peer": value for label, value in peer.items()},
        ratio=share if len(shares) == len(match.runs) else None,
        ratio_low=None,
        target=1.0,
        checks=tuple(checks),
    )


if __name__ == "__main__":
    sys.exit(main())
