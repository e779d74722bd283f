"""BERT-base training in little memory: ours against HF Trainer as it comes, peak memory of a child process.

`python -m benchmarks.memory_bert [--json] [--quick]`. Masked language modelling, 8 rows of 128 tokens, the same
weights, batches and update (AdamW, dropout 0.1). Ours twice: `lean` must take 55% less at no more than 10% more time,
`leanest` 70% less at no more than 35% more; both in bfloat16 with 8-bit averages, and `memory_budget` picks the rest.
For reference: ours with its defaults, HF with bf16 and gradient checkpointing, and the loss head alone (V=50,000,
N=4,096), which must take a tenth of the plain one's memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Contestant, Match, Role, run_child
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

LEAN, LEANEST, HF, HEAD, PLAIN_HEAD = "ours-lean", "ours-leanest", "hf-trainer", "head-ours", "head-plain"
SAVED = {LEAN: (0.55, 1.10), LEANEST: (0.70, 1.35)}
"""Share of the memory to save, and the most time that may cost, relative to HF's step."""


def main(argv: Sequence[str] | None = None) -> int:
    """Play the match; returns 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_bert", description=__doc__)
    options, _ = parse_options(parser, argv, rounds=3, quick_rounds=1)
    announce("memory_bert: BERT-base masked LM, 8 x 128, MiB above what the process had before", options)
    with tempfile.TemporaryDirectory(prefix="bench-memory-") as folder:
        run_child(_contestant("prepare", folder, "reference", "transformers"), 300)
        names = [LEAN, LEANEST, HF] + ([] if options.quick else ["ours-defaults", "hf-lean"]) + [HEAD, PLAIN_HEAD]
        match = Match([_of(name, folder) for name in names], higher_is_better=False, timeout=900)
        match.play(1)
        match.play(options.rounds - 1, [LEAN, LEANEST, HF])
    checks = [failure_check(match), quiet_check(match)]
    trained = [name for name in names if not name.startswith("head")]
    checks += [agreement_check(match, key, 0.02, trained) for key in ("first_loss", "second_loss")]
    checks += [check for name, (saved, time) in SAVED.items() for check in _saving(match, name, saved, time)]
    checks += [agreement_check(match, "head_loss", 0.001, [HEAD, PLAIN_HEAD]), *_head(match)]
    ratio = match.ratio(LEANEST, HF)
    mine, theirs = match.summary(LEANEST), match.summary(HF)
    outcome = Outcome(
        name="memory_bert",
        unit="MiB",
        ours=None if mine is None else mine.median,
        peers={} if theirs is None else {HF: theirs.median},
        ratio=None if ratio is None else ratio[0],
        ratio_low=None if ratio is None else ratio[1],
        target=round(1 / (1 - SAVED[LEANEST][0]), 2),
        checks=tuple(checks),
    )
    return finish(match, outcome, options)


def _of(name: str, folder: str) -> Contestant:
    role: Role = "ours" if name in SAVED else "peer" if name == HF else "reference"
    return _contestant(name, folder, role, "transformers" if name.startswith("hf") else None)


def _contestant(name: str, folder: str, role: Role, needs: str | None) -> Contestant:
    command = ("-m", "benchmarks.children.memory_run", name, str(Path(folder)))
    return Contestant(name, command, role, {"CUDA_VISIBLE_DEVICES": ""}, needs)


def _saving(match: Match, name: str, saved: float, time: float) -> list[Check]:
    """Return the checks that `name` takes so much less memory than HF, and at most so many times its time."""
    mine, theirs = match.summary(name), match.summary(HF)
    if mine is None or theirs is None:
        return [Check(f"{name} against {HF}", None, "both ran", False)]
    found = 1 - mine.median / theirs.median
    slower = _seconds(match, name) / _seconds(match, HF)
    return [
        Check(f"{name}: share of HF's memory saved", found, f">= {saved}", found >= saved),
        Check(f"{name}: time of a step relative to HF's", slower, f"<= {time}", slower <= time),
    ]


def _head(match: Match) -> list[Check]:
    """Return the checks of the loss head: memory but for the gradients that are handed on, and time."""
    if not (match.runs[HEAD] and match.runs[PLAIN_HEAD]):
        return [Check("loss head", None, "both ran", False)]
    mine, plain = (match.runs[name][0] for name in (HEAD, PLAIN_HEAD))
    gradients = float(mine.details["gradients_mib"])
    share = (mine.value - gradients) / (plain.value - gradients)
    slower = _seconds(match, HEAD) / _seconds(match, PLAIN_HEAD)
    return [
        Check("loss head: share of the plain one's memory", share, "<= 0.1", share <= 0.1),
        Check("loss head: time relative to the plain one's", slower, "<= 1.05", slower <= 1.05),
    ]


def _seconds(match: Match, name: str) -> float:
    """Return the least of the runs' step times: what disturbs a run makes it slower."""
    return min(float(run.details["step_seconds"]) for run in match.runs[name])


if __name__ == "__main__":
    sys.exit(main())
