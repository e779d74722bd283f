"""GPT training on one GPU: 24 layers, d 1536, 2,048 tokens, 50,265 classes, 8 rows a step; MFU, gaps, tokens/s.

`python -m benchmarks.gpu_train [--json] [--quick]`. Wanted of ours in bf16: at least half of the GPU's peak rate (the
formula is in `gpu/flops.py`), a GPU that is busy more than 95% of the time, and 99 of 100 gaps between kernels below
10 us. Without a GPU nothing is measured and nothing recorded: the exit code is 77 and `ok` in the JSON line is null.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import device
from benchmarks.harness import Contestant, Match, Role
from benchmarks.scoreboard import (
    Check,
    Options,
    Outcome,
    agreement_check,
    announce,
    failure_check,
    finish,
    parse_options,
)

NOTHING_MEASURED = 77
"""The exit code of a test that was skipped, as GNU Automake has it."""
TARGET, MFU_TARGET, BUSY_TARGET, GAP_TARGET_US = 1.0, 0.5, 0.95, 10.0
ROLES: dict[str, Role] = {"ours": "ours", "hf-trainer": "peer", "raw-loop": "peer", "ours-fp8": "reference"}
NEEDS = {"hf-trainer": "transformers"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 0 when every target is met, 77 without a GPU, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_train", description=__doc__)
    options, _ = parse_options(parser, argv, rounds=3, quick_rounds=1)
    gpu = device.find()
    if gpu is None:
        print("gpu_train: no GPU: nothing measured")
        if options.json:
            print(json.dumps(nothing_measured()))
        return NOTHING_MEASURED
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        return _compare(Path(folder), options, gpu)


def nothing_measured() -> dict[str, object]:
    """Return the JSON line of a machine without a GPU: no figure, and neither met nor missed."""
    empty: dict[str, object] = {"ours": None, "peers": {}, "ratio": None, "target": TARGET, "ok": None}
    return {"name": "gpu_train", **empty, "skipped": "no GPU: nothing measured"}


def _compare(folder: Path, options: Options, gpu: dict[str, Any]) -> int:
    from benchmarks.gpu.prepare import write_workload

    announce(f"gpu_train: GPT V50265 T2048 L24 D1536 B8 on {gpu['name']}, tokens/s", options)
    workload = write_workload(folder)
    has_fp8 = float(gpu["capability"]) >= 8.9
    names = [name for name in ROLES if has_fp8 or name != "ours-fp8"]
    match = Match([_contestant(name, folder) for name in names], timeout=1200.0)
    match.play(options.rounds)
    settings = {name: value for name, value in vars(workload).items() if name != "folder"}
    return finish(match, verdict(match), options, {"workload": settings, "gpu": gpu})


def verdict(match: Match) -> Outcome:
    """Return the outcome: ours in bf16 over the best peer, with the checks of MFU, busy share and gaps."""
    peer = match.best("peer")
    ratio = None if peer is None else match.ratio("ours", peer)
    mine = match.summary("ours")
    checks = [
        failure_check(match),
        agreement_check(match, "first_loss", 0.01),
        agreement_check(match, "final_loss", 0.01),
        _check("share of the bf16 peak (MFU, causal attention)", _median(match, "mfu"), ">=", MFU_TARGET),
        _check("share of time the GPU is busy", _median(match, "timeline", "busy_share"), ">", BUSY_TARGET),
        _check("99th percentile of gaps, us", _median(match, "timeline", "p99_gap_us"), "<", GAP_TARGET_US),
    ]
    return Outcome(
        name="gpu_train",
        unit="tokens/s",
        ours=None if mine is None else mine.median,
        peers={name: found.median for name in match.ranking("peer") if (found := match.summary(name))},
        ratio=None if ratio is None else ratio[0],
        ratio_low=None if ratio is None else ratio[1],
        target=TARGET,
        checks=tuple(checks),
    )


def _median(match: Match, *keys: str) -> float | None:
    """Return the median of a detail of ours, None where a run lacks it."""
    values = []
    for run in match.runs["ours"]:
        found: Any = run.details
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if found is None:
            return None
        values.append(float(found))
    return statistics.median(values) if values else None


def _check(name: str, found: float | None, relation: str, wanted: float) -> Check:
    ok = found is not None and {">=": found >= wanted, ">": found > wanted, "<": found < wanted}[relation]
    return Check(name, found, f"{relation} {wanted}", ok)


def _contestant(name: str, folder: Path) -> Contestant:
    command = ("-m", "benchmarks.children.gpu_run", name, str(folder))
    return Contestant(name, command, ROLES[name], needs=NEEDS.get(name))


if __name__ == "__main__":
    sys.exit(main())
