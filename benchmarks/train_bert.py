"""BERT-base masked-token training: ours against HF Trainer and a raw compiled loop, in tokens per second.

`python -m benchmarks.train_bert [--batch-size 16] [--json] [--quick]`. Rows of 128 tokens of real text, 15% hidden,
the ends of documents padded; dropout 0.1 as in BERT. A first round lets everyone run once; the later rounds are played
between ours and the best two peers. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.harness import Contestant, Match, Role, with_allocator
from benchmarks.scoreboard import (
    Check,
    Options,
    Outcome,
    agreement_check,
    announce,
    failure_check,
    finish,
    parse_options,
    quiet_check,
)

TARGET, EAGER_TARGET = 1.15, 3.0
EAGER = "hf-trainer-eager-fp32"
ROLES: dict[str, Role] = {
    "ours": "ours",
    "hf-trainer": "peer",
    "raw-loop": "peer",
    EAGER: "reference",
    "ours-eager-fp32": "reference",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_bert", description=__doc__)
    parser.add_argument("--batch-size", type=int, default=16, help="rows in a step (default 16)")
    parser.add_argument("--one-allocator", action="store_true", help="leave out the runs with plain malloc")
    options, found = parse_options(parser, argv, rounds=4, quick_rounds=1)
    with tempfile.TemporaryDirectory(prefix="bench-bert-") as folder:
        return _compare(Path(folder), options, found.batch_size, not (options.quick or found.one_allocator))


def _compare(folder: Path, options: Options, batch_size: int, both: bool) -> int:
    from benchmarks.bert import prepare
    from benchmarks.bert.workload import Workload
    from benchmarks.gpt.prepare import source_text

    announce(f"train_bert: BERT-base, {batch_size} x 128 tokens, tokens/s after the first 4 steps of 10", options)
    workload = prepare.write_workload(folder, source_text(), Workload(folder, batch_size=batch_size))
    match = Match(contestants(folder, both), timeout=900.0)
    match.play(1)
    finalists = [*match.ranking("ours")[:1], *match.ranking("peer")[:2]]
    match.play(options.rounds - 1, finalists)
    settings = {name: value for name, value in vars(workload).items() if name != "folder"}
    return finish(match, verdict(match), options, {"workload": settings, "tokens": workload.tokens()})


def contestants(folder: Path, both: bool) -> list[Contestant]:
    """Return all sides; those that count with both allocators, the eager references as they come."""
    sides = {name: _contestant(name, folder, role) for name, role in ROLES.items()}
    played = with_allocator([sides[name] for name in ("ours", "hf-trainer", "raw-loop")], both)
    return [*played, sides[EAGER], sides["ours-eager-fp32"]]


def verdict(match: Match) -> Outcome:
    """Return the outcome: ours over the best peer, and over eager float32."""
    ours, peer = match.best("ours"), match.best("peer")
    ratio = None if ours is None or peer is None else match.ratio(ours, peer)
    mine = None if ours is None else match.summary(ours)
    peers = [name for name, one in match.contestants.items() if one.role == "peer"]
    checks = [
        failure_check(match),
        quiet_check(match),
        agreement_check(match, "first_loss", 0.01),
        agreement_check(match, "mean_loss", 0.01),
        agreement_check(match, "final_loss", 0.01),
        _eager_check(match, ours),
    ]
    return Outcome(
        name="train_bert",
        unit="tokens/s",
        ours=None if mine is None else mine.median,
        peers={name: summary.median for name in peers if (summary := match.summary(name))},
        ratio=None if ratio is None else ratio[0],
        ratio_low=None if ratio is None else ratio[1],
        target=TARGET,
        checks=tuple(checks),
    )


def _eager_check(match: Match, ours: str | None) -> Check:
    ratio = None if ours is None else match.ratio(ours, EAGER)
    found = None if ratio is None else ratio[0]
    return Check(f"times faster than {EAGER}", found, f">= {EAGER_TARGET}", found is not None and found >= EAGER_TARGET)


def _contestant(name: str, folder: Path, role: Role) -> Contestant:
    command = ("-m", "benchmarks.children.bert_run", name, str(folder))
    needs = None if name.startswith("ours") else "transformers"
    return replace(Contestant(name, command, env={"CUDA_VISIBLE_DEVICES": ""}, needs=needs), role=role)


if __name__ == "__main__":
    sys.exit(main())
