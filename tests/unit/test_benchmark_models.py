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
    case, folder, peer = case.toy(), Path(name), "loop" if name in MOE_CASES else "theirs"
    if name in CASES:
        case.prepare(folder)
    found[name] = [run(case, "eager", side, folder, seconds=0.0)["outputs"] for side in ("ours", peer)]
print("RESULT" + json.dumps(found))
"""


def played(ours_ms: float, gradient: float = 1.0) -> tuple[Match, list[models.Pair]]:
    pairs, contestants = models.field(["gpt2-small", "moe-64"], ["eager"], Path("x"))
    match = Match(contestants, higher_is_better=False, say=lambda line: None)
    for contestant in contestants:
        ours = contestant.role == "ours"
        value = ours_ms if ours else 30.0
        outputs = {"forward_ms": value, "train_ms": value, "output_norm": 2.0, "gradient_norm": gradient if ours else 1}
        match.runs[contestant.name] = [Run(1, value, outputs, {}, 9.0, 0.0)]
    return match, pairs


def test_every_model_has_two_sides_in_both_modes_and_the_experts_one() -> None:
    pairs, contestants = models.field(models.NAMES, models.MODES, Path("x"))
    assert len(pairs) == 12 and len(contestants) == 24
    assert {pair.target for pair in pairs} == {1.0, 2.0}


def test_the_ratio_is_the_smallest_share_of_a_target() -> None:
    outcome = models.verdict(*played(10.0))
    assert outcome.ok and outcome.ratio == pytest.approx(1.5)  # 3 times, and the experts want 2
    assert outcome.peers == {"moe-64 eager loop": 30.0} and outcome.ours == 10.0
    assert not models.verdict(*played(20.0)).ok


def test_other_gradients_fail_whatever_the_speed() -> None:
    assert not models.verdict(*played(10.0, gradient=1.01)).ok


def test_a_contestant_that_did_not_run_leaves_no_ratio() -> None:
    match, pairs = played(10.0)
    match.runs["moe-64 eager loop"] = []
    assert models.verdict(match, pairs).ratio is None


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
    for name, (ours, theirs) in found.items():
        for key, tolerance in models.tolerances(name).items():
            assert ours[key] == pytest.approx(theirs[key], rel=tolerance), f"{name}: {key}"


def test_it_explains_itself() -> None:
    command = [sys.executable, "-m", "benchmarks.models", "--help"]
    shown = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True, check=True).stdout
    assert "--case" in shown and "--mode" in shown and "--quick" in shown
