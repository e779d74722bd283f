"""Serving models of fixed shape: a tiny model flat out, overload, a table model, gRPC, and dynamic batching.

`python -m benchmarks.serve [--case tiny] [--json] [--quick]`. Loopback; client and server on a core each, every server
in a fresh process. Peers: uvicorn answering a constant, FastAPI with torch, a grpc.aio handler, ourselves without
batching. Where there is no peer the figure is held against its bound.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import Contestant, Match, run_child, times_better
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


@dataclass(frozen=True)
class Case:
    """One figure: what ours is held against, and bounds of what it gives beside it."""

    unit: str
    bundle: str
    peers: Mapping[str, float] = field(default_factory=dict)
    """Contestants, and how many times better ours is to be than each."""
    references: tuple[str, ...] = ()
    needs: Mapping[str, str] = field(default_factory=dict)
    higher_is_better: bool = True
    bound: float | None = None
    """Of the figure itself, where there is no peer."""
    at_most: Mapping[str, float] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)
    agrees: str | None = None
    agreeing: tuple[str, ...] = ()


CASES = {
    "tiny": Case(
        "requests/s of a tiny model over REST",
        "mlp",
        peers={"bare": 0.7, "fastapi": 2.0},
        references=("ours infer",),
        needs={"fastapi": "fastapi"},
        at_most={"refused": 0, "different_answers": 0},
        agrees="probability",
        agreeing=("ours", "fastapi", "ours infer"),
    ),
    "overload": Case(
        "p99 of accepted requests under 10 times the load, as a multiple of the idle server's",
        "text",
        higher_is_better=False,
        bound=2.0,
        at_most={"other_statuses": 0, "refused_without_retry_after": 0, "refused_p99_ms": 50},
        at_least={"accepted": 100, "kept_of_sustainable": 0.3},
    ),
    "table": Case(
        "ms, p99 of a table's row at 200 requests/s", "table", higher_is_better=False, bound=5.0, at_most={"failed": 0}
    ),
    "rpc": Case("calls/s of a tiny model over gRPC", "mlp", peers={"plain": 0.9}, agrees="probability"),
    "batching": Case(
        "rows/s of ResNet-18 with 64 requests outstanding",
        "resnet18",
        peers={"ours one by one": 3.0},
        at_most={"different_answers": 0},
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--case", choices=list(CASES), action="append", help="only this one (may be given again)")
    options, chosen = parse_options(parser, argv, rounds=3, quick_rounds=1)
    announce("serve: models of fixed shape over REST and gRPC", options)
    exit_code = 0
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as folder:
        names = chosen.case or list(CASES)
        for bundle in {CASES[name].bundle: None for name in names}:
            run_child(contestant("prepare", bundle, Path(folder), options.quick), timeout=300.0)
        for name in names:
            case = CASES[name]
            match = Match(players(name, Path(folder), options.quick), higher_is_better=case.higher_is_better)
            match.play(options.rounds)
            exit_code |= finish(match, verdict(name, match), options, {"case": name})
    return exit_code


def contestant(measure: str, name: str, folder: Path, quick: bool) -> Contestant:
    """Return one side of a match."""
    command = ("-m", "benchmarks.serve_cases.run", measure, name, str(folder), "quick" if quick else "full")
    case = CASES.get(measure)
    role = "ours" if name == "ours" or case is None else "reference" if name in case.references else "peer"
    needs = None if case is None else case.needs.get(name)
    return Contestant(name, command, role, {"CUDA_VISIBLE_DEVICES": ""}, needs)  # type: ignore[arg-type]


def players(measure: str, folder: Path, quick: bool) -> list[Contestant]:
    """Return everyone who plays a measure."""
    case = CASES[measure]
    return [contestant(measure, name, folder, quick) for name in ("ours", *case.peers, *case.references)]


def verdict(name: str, match: Match) -> Outcome:
    """Return the outcome of one case; its ratio is the smallest of all, each as a share of its own target."""
    case, ours = CASES[name], match.summary("ours")
    checks = [failure_check(match), quiet_check(match)]
    shares: list[float] = []
    for peer, target in case.peers.items():
        ratio = match.ratio("ours", peer)
        if ratio is not None:
            checks.append(Check(f"times better than {peer}", ratio[0], f">= {target}", ratio[0] >= target))
            shares.append(ratio[0] / target)
    if case.bound is not None and ours is not None:
        shares.append(times_better(ours.median, case.bound, case.higher_is_better))
        checks.append(Check(case.unit, ours.median, f"<= {case.bound}", shares[-1] >= 1))
    for key, most in case.at_most.items():
        found = match.outputs(key, ["ours"]).get("ours")
        checks.append(Check(key.replace("_", " "), found, f"<= {most}", found is not None and found <= most))
    for key, least in case.at_least.items():
        found = match.outputs(key, ["ours"]).get("ours")
        checks.append(Check(key.replace("_", " "), found, f">= {least}", found is not None and found >= least))
    if case.agrees is not None:
        checks.append(agreement_check(match, case.agrees, 1e-4, case.agreeing or None))
    peers = {peer: summary.median for peer in case.peers if (summary := match.summary(peer)) is not None}
    whole = len(shares) == len(case.peers) + (case.bound is not None)
    return Outcome(
        name="serve",
        unit=case.unit,
        ours=None if ours is None else ours.median,
        peers=peers,
        ratio=min(shares) if shares and whole else None,
        ratio_low=None,
        target=1.0,
        checks=tuple(checks),
    )


if __name__ == "__main__":
    sys.exit(main())
