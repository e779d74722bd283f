"""Our int8 against every int8 we know of: ResNet-50 and BERT-base, in batches of 1 and 8.

`python -m benchmarks.compress [--case resnet50] [--batch 1] [--json] [--quick]`. Peers: NNCF in OpenVINO, ONNX
Runtime's own quantizer (static and dynamic), PT2E in inductor; bfloat16 and eager FP32 are shown beside them. Each form
runs in fresh processes, in turn, with the same threads. A form whose answers are far from eager FP32's does not count.
Milliseconds of a call, less is better.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.compress_cases.forms import FORMS
from benchmarks.compress_cases.models import CASES
from benchmarks.harness import ChildError, Contestant, Match, run_child
from benchmarks.scoreboard import Check, Outcome, announce, failure_check, finish, parse_options, quiet_check

BATCHES = (1, 8)
TARGET = 0.97
"""Of the best peer's speed: at least equal, within 3% of noise."""
BF16_TARGET, SIZE_TARGET, LEAST_COSINE = 4.0, 0.27, 0.9
"""Weights are drawn, so an answer holds nothing that repeats: the cosine tells a wrong model, not a good one."""
QUICK = ("eager fp32", "ours int8 openvino", "nncf int8 openvino", "onnxruntime int8 static")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compress", description=__doc__)
    parser.add_argument("--case", choices=list(CASES), action="append", help="only this model (may be given again)")
    parser.add_argument("--batch", type=int, choices=BATCHES, action="append", help="only this batch size")
    parser.add_argument("--form", choices=list(FORMS), action="append", help="only this form (may be given again)")
    options, chosen = parse_options(parser, argv, rounds=3, quick_rounds=1)
    announce("compress: milliseconds of a call, ours and its peers in int8", options)
    forms = chosen.form or (QUICK if options.quick else tuple(FORMS))
    names, exit_code = chosen.case or list(CASES), 0
    for case in names:
        with tempfile.TemporaryDirectory(prefix="bench-compress-") as folder:
            sizes, unmade = prepare(case, forms, Path(folder))
            for batch in chosen.batch or BATCHES:
                match = Match(field(case, forms, batch, Path(folder)), higher_is_better=False)
                match.failures.update(unmade)
                match.play(options.rounds)
                extra = {"case": case, "batch": batch, "bytes": sizes, "ratios": ratios(match)}
                exit_code |= finish(match, verdict(match, case, batch, sizes), options, extra)
    return exit_code


def prepare(case: str, forms: Sequence[str], folder: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Make the files of all forms, each in its own process; return their sizes, and why some could not be made."""
    sizes: dict[str, int] = {}
    failures: dict[str, str] = {}
    for form in ("fp32 openvino", *forms):
        try:
            found = run_child(_contestant(case, form, 0, folder), timeout=1200.0)["outputs"]
        except ChildError as error:
            failures[form] = str(error)
            continue
        if "bytes" in found:
            sizes[form] = int(found["bytes"])
    return sizes, {form: reason for form, reason in failures.items() if form in forms}


def field(case: str, forms: Sequence[str], batch: int, folder: Path) -> list[Contestant]:
    """Return a contestant for each form."""
    return [_contestant(case, form, batch, folder) for form in forms]


def _contestant(case: str, form: str, batch: int, folder: Path) -> Contestant:
    command = ("-m", "benchmarks.compress_cases.run", case, form, str(batch), str(folder))
    chosen = FORMS[form]
    return Contestant(form, command, chosen.role, {"CUDA_VISIBLE_DEVICES": ""}, chosen.needs)  # type: ignore[arg-type]


def ratios(match: Match) -> dict[str, float]:
    """Return how many times faster than eager FP32 each form is."""
    eager = match.summary("eager fp32")
    if eager is None:
        return {}
    medians = {name: match.summary(name) for name in match.contestants}
    return {name: eager.median / found.median for name, found in medians.items() if found is not None}


def honest(match: Match, role: str) -> list[str]:
    """Return the int8 forms of a role whose answers are near enough, the fastest first."""
    near = match.outputs("cosine")
    ranked = match.ranking(role)  # type: ignore[arg-type]
    return [name for name in ranked if FORMS[name].precision == "int8" and near.get(name, 0.0) >= LEAST_COSINE]


def verdict(match: Match, case: str, batch: int, sizes: dict[str, int]) -> Outcome:
    """Return the outcome of one case at one batch size: the best of ours against the best peer."""
    ours, peers, faster = honest(match, "ours"), honest(match, "peer"), ratios(match)
    checks = [failure_check(match), quiet_check(match)]
    target = CASES[case.partition(":")[0]].eager_target
    if ours and faster:
        best = faster[ours[0]]
        checks.append(Check("int8, times faster than eager FP32", best, f">= {target}", best >= target))
    half = [faster[name] for name in faster if FORMS[name].precision == "bf16"]
    if half:
        checks.append(
            Check("bf16, times faster than eager FP32", max(half), f">= {BF16_TARGET}", max(half) >= BF16_TARGET)
        )
    if ours and "fp32 openvino" in sizes and ours[0] in sizes:
        share = sizes[ours[0]] / sizes["fp32 openvino"]
        checks.append(Check("size of FP32", share, f"<= {SIZE_TARGET}", share <= SIZE_TARGET))
    for name, cosine in match.outputs("cosine").items():
        if FORMS[name].role == "ours":
            checks.append(Check(f"{name}: cosine to FP32", cosine, f">= {LEAST_COSINE}", cosine >= LEAST_COSINE))
    found = match.ratio(ours[0], peers[0]) if ours and peers else None
    summary = match.summary(ours[0]) if ours else None
    return Outcome(
        name="compress",
        unit=f"ms of a call of {case} at batch {batch}, less is better",
        ours=None if summary is None else summary.median,
        peers={name: peer.median for name in peers if (peer := match.summary(name))},
        ratio=None if found is None else found[0],
        ratio_low=None if found is None else found[1],
        target=TARGET,
        checks=tuple(checks),
    )


if __name__ == "__main__":
    sys.exit(main())
