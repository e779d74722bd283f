"""GPT training: ours against HF Trainer, Lightning and the nanoGPT-style raw loop, in tokens per second.

`python -m benchmarks.train_gpt [--case full|documents] [--json] [--quick]`. A first round lets everyone run once;
the later rounds are played between ours, the best peer and the references. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.gpt.workload import Workload
from benchmarks.harness import Contestant, Match, with_allocator
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

AS_IT_COMES = "hf-trainer-as-it-comes"
FULL_TARGET, AS_IT_COMES_TARGET, MATMUL_TARGET = 1.25, 2.5, 0.50
DOCUMENTS_TARGET = 2.0
DOCUMENTS, HELD_OUT = 7168, 64
DOCUMENT_ROUNDS = 3
"""Default rounds of the documents, whose contestants take longer."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen case; returns 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_gpt", description=__doc__)
    parser.add_argument("--case", choices=("full", "documents"), default="full", help="full batches, or documents")
    parser.add_argument("--one-allocator", action="store_true", help="leave out the runs with plain malloc")
    options, found = parse_options(parser, argv, rounds=5, quick_rounds=2)
    both = not (options.quick or found.one_allocator)
    with tempfile.TemporaryDirectory(prefix="bench-gpt-") as folder:
        if found.case == "documents":
            fewer = options if found.rounds else replace(options, rounds=min(options.rounds, DOCUMENT_ROUNDS))
            return _documents(Path(folder), fewer, both)
        return _full(Path(folder), options, both)


def _full(folder: Path, options: Options, both: bool) -> int:
    announce("train_gpt: V8192 T256 L6 D384 H6 B8, 30 steps, tokens/s after the first 5", options)
    workload = _prepare(folder, documents=False)
    peers = [
        _contestant("raw-loop", folder),
        _contestant("lightning", folder, needs="lightning"),
        _contestant("hf-trainer", folder, needs="transformers"),
    ]
    # As it comes means with the allocator as it comes, too.
    plain = replace(_contestant(AS_IT_COMES, folder, needs="transformers"), role="reference")
    bare = with_allocator([replace(_contestant("torch-mm", folder), role="reference")], both=False)
    ours = replace(_contestant("ours", folder), role="ours")
    match = Match([*with_allocator([ours, *peers], both), plain, *bare])
    peer = _play(match, options, keep=("torch-mm",))
    checks = [
        failure_check(match),
        quiet_check(match),
        agreement_check(match, "first_loss", 0.01, _trainers(match)),
        agreement_check(match, "final_loss", 0.01, _trainers(match)),
        _at_least(match, f"times faster than {AS_IT_COMES}", AS_IT_COMES, AS_IT_COMES_TARGET),
        _at_least(match, "share of the bare bf16 torch.mm rate", "torch-mm", MATMUL_TARGET),
    ]
    outcome = _outcome("train_gpt", "tokens/s", match, peer, FULL_TARGET, checks)
    return finish(match, outcome, options, {"workload": _settings(workload)})


def _documents(folder: Path, options: Options, both: bool) -> int:
    announce("train_gpt documents: variable-length JSONL, useful target tokens/s", options)
    workload = _prepare(folder, documents=True)
    names = ["documents-hf", "documents-hf-matched", "documents-hf-matched-compiled"]
    if not options.quick:
        names.insert(1, "documents-hf-compiled")
    peers = [_contestant(name, folder, needs="transformers") for name in names]
    ours = replace(_contestant("documents-ours", folder), role="ours")
    joined = with_allocator([replace(_contestant("documents-ours-joined", folder), role="reference")], both=False)
    match = Match([*with_allocator([ours, *peers], both), *joined])
    peer = _play(match, options)
    checks = [
        failure_check(match),
        quiet_check(match),
        agreement_check(match, "first_loss", 0.02),  # the same weights, but not the same first batch
        _held_out_check(match),
    ]
    outcome = _outcome("train_gpt_documents", "useful target tokens/s", match, peer, DOCUMENTS_TARGET, checks)
    return finish(match, outcome, options, {"workload": _settings(workload)})


def _prepare(folder: Path, documents: bool) -> Workload:
    from benchmarks.gpt import prepare

    workload = prepare.write_workload(folder, prepare.source_text())
    if documents:
        workload = replace(workload, skip=12)
        workload = prepare.write_documents(workload, prepare.source_text(), DOCUMENTS, HELD_OUT)
        count = len(workload.documents())
        print(f"  {count} documents; {workload.documents_per_batch} of them hold the tokens of one packed batch")
    return workload


def _play(match: Match, options: Options, keep: Sequence[str] = ()) -> str | None:
    """Play one round of all, then the others between ours, the two best peers and `keep`; return the best peer."""
    match.play(1)
    finalists = [*match.ranking("ours")[:1], *match.ranking("peer")[:2], *keep]
    match.play(options.rounds - 1, finalists)
    return match.best("peer")


def _outcome(name: str, unit: str, match: Match, peer: str | None, target: float, checks: Sequence[Check]) -> Outcome:
    ours = match.best("ours")
    ratio = None if ours is None or peer is None else match.ratio(ours, peer)
    mine = None if ours is None else match.summary(ours)
    return Outcome(
        name=name,
        unit=unit,
        ours=None if mine is None else mine.median,
        peers={
            one: summary.median
            for one, contestant in match.contestants.items()
            if contestant.role == "peer" and (summary := match.summary(one))
        },
        ratio=None if ratio is None else ratio[0],
        ratio_low=None if ratio is None else ratio[1],
        target=target,
        checks=tuple(checks),
    )


def _at_least(match: Match, name: str, against: str, target: float) -> Check:
    """Return the check that ours is at least `target` times `against`."""
    ours = match.best("ours")
    ratio = None if ours is None else match.ratio(ours, against)
    found = None if ratio is None else ratio[0]
    return Check(name, found, f">= {target}", found is not None and found >= target)


def _held_out_check(match: Match) -> Check:
    """Return the check that ours learned at least as much as the peers that saw as many tokens per step, within 5%."""
    losses = match.outputs("held_out_loss")
    ours = match.best("ours")
    matched = [loss for name, loss in losses.items() if "-matched" in name]
    if ours is None or not matched:
        return Check("held-out loss", None, "ours and a matched peer", False)
    wanted = round(min(matched) * 1.05, 4)
    return Check("held-out loss of ours, nats", losses[ours], f"<= {wanted}", losses[ours] <= wanted)


def _contestant(name: str, folder: Path, needs: str | None = None) -> Contestant:
    command = ("-m", "benchmarks.children.gpt_run", name, str(folder))
    return Contestant(name, command, env={"CUDA_VISIBLE_DEVICES": ""}, needs=needs)


def _trainers(match: Match) -> list[str]:
    return [name for name in match.contestants if name != "torch-mm"]


def _settings(workload: Workload) -> dict[str, object]:
    return {name: value for name, value in vars(workload).items() if name != "folder"}


if __name__ == "__main__":
    sys.exit(main())
