"""The benchmark of binary layers: its verdict, and every kind of layer once at toy size. Nothing depends on speed."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import binary
from benchmarks.children.binary_run import CASES, Case, run
from benchmarks.harness import Match, Run


def played(fp32: float, different: float = 0.0, size: float = 30.0) -> Match:
    match = Match(binary.field(["conv 64, 56x56, batch 1", "linear 4096-4096, 1 row"]), higher_is_better=False)
    for label in match.contestants:
        ratios = {"fp32_ratio": fp32, "bf16_ratio": 2.0, "int8_ratio": 0.9}
        match.runs[label] = [Run(1, 1.0, {**ratios, "different": different, "size_ratio": size}, {}, 9.0, 0.0)]
    return match


def test_the_ratio_is_the_mean_speed_up_over_fp32() -> None:
    outcome = binary.verdict(played(7.0))
    assert outcome.ok and outcome.ratio == pytest.approx(7.0)
    assert set(outcome.peers.values()) == {7.0, 2.0, 0.9}
    assert not binary.verdict(played(6.0)).ok


def test_other_outputs_or_a_large_layer_fail_whatever_the_speed() -> None:
    assert not binary.verdict(played(9.0, different=1.0)).ok
    assert not binary.verdict(played(9.0, size=15.0)).ok
    match = played(9.0)
    match.runs["linear 4096-4096, 1 row"] = []
    assert binary.verdict(match).ratio is None


def test_there_is_a_contestant_for_each_layer() -> None:
    assert [contestant.name for contestant in binary.field(list(CASES))] == list(CASES)


@pytest.mark.parametrize("case", [Case(1, 64, 32, 6), Case(3, 128, 32)])
def test_a_layer_runs_in_every_form(case: Case) -> None:
    result: dict[str, Any] = run(case, seconds=0.0)
    assert result["outputs"]["different"] == 0
    assert result["outputs"]["size_ratio"] > 16
    assert set(result["details"]["ms"]) == {"binary", "fp32", "bf16", "int8"}
