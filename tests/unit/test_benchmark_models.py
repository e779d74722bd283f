"""The benchmark of models: its verdict, and every contestant once at toy size. Nothing here depends on speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import harness, models
from benchmarks.harness import Match, Run
from tests.command_line import environment

TOYS = """
import json, sys
from pathlib import Path
from benchmarks.children.models_run import run
from benchmarks.model_cases import CASES, MOE_CASES

found = {}
for name, case in {**CASES, **MOE_CASES}.items():
    case, folder = case.toy(), Path(name)
    if name in CASES:
        case.prepare(folder)
    found[name] = run(case, "eager", folder, seconds=0.0)["outputs"]
print("RESULT" + json.dumps(found))
"""


def played(ours_ms: float, gradient_gap: float = 0.0) -> Match:
    match = Match(models.field(["gpt2-small", "moe-64"], ["eager"], Path("x")), higher_is_better=False)
    for label in match.contestants:
        ratios = {"forward_ratio": 30 / ours_ms, "train_ratio": 30 / ours_ms, "peer_train_ms": 30.0}
        outputs = {**ratios, "output_gap": 0.0, "gradient_gap": gradient_gap}
        match.runs[label] = [Run(1, ours_ms, outputs, {}, 9.0, 0.0)]
    return match


def test_every_model_runs_in_both_modes_and_the_experts_in_one() -> None:
    labels = [contestant.name for contestant in models.field(models.NAMES, models.MODES, Path("x"))]
    assert len(labels) == 12 and "moe-64 compiled" not in labels


def test_the_ratio_is_the_smallest_share_of_a_target() -> None:
    outcome = models.verdict(played(10.0))
    assert outcome.ok and outcome.ratio == pytest.approx(1.5)  # 3 times, and the experts want 2
    assert outcome.peers == {"moe-64 eager peer": 30.0} and outcome.ours == 10.0
    assert not models.verdict(played(20.0)).ok


def test_other_gradients_fail_whatever_the_speed() -> None:
    assert not models.verdict(played(10.0, gradient_gap=0.02)).ok


def test_a_contestant_that_did_not_run_leaves_no_ratio() -> None:
    match = played(10.0)
    match.runs["moe-64 eager"] = []
    assert models.verdict(match).ratio is None


def test_both_sides_of_every_case_agree_at_toy_size(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    done = subprocess.run(
        [sys.executable, "-c", TOYS],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.partition("RESULT")[2])
    assert set(found) == set(models.NAMES)
    for name, outputs in found.items():
        for key, tolerance in models.tolerances(name).items():
            assert outputs[key] <= tolerance, f"{name}: {key}"


def test_it_explains_itself() -> None:
    command = [sys.executable, "-m", "benchmarks.models", "--help"]
    shown = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True, check=True).stdout
    assert "--case" in shown and "--mode" in shown and "--quick" in shown
