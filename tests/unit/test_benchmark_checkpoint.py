"""The checkpoint benchmark: each contestant once at toy size, and its verdict on made-up figures."""

from __future__ import annotations

import warnings

import pytest

from benchmarks import checkpoint
from benchmarks.children import checkpoint_run
from benchmarks.harness import Contestant, Match, Run


@pytest.mark.parametrize("name", checkpoint_run.CONTESTANTS)
def test_each_contestant_brings_back_what_it_saved(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.distributed says that it is alone
        result = checkpoint_run.run(name, 0.001)
    assert result["outputs"] == {"wrong_tensors": 0.0}
    figures = result["details"]
    assert result["value"] == figures["total_s"] and 0 < figures["blocked_s"] <= figures["total_s"]


def test_the_state_is_that_of_gpt_2() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_run.torch, "randn", lambda shape, generator: checkpoint_run.torch.empty(shape))
        count = sum(tensor.numel() for tensor in checkpoint_run.gpt_state(1.0)["model"].values())
    assert count == 124_439_808


def verdict_of(**ours: float) -> tuple[bool, float | None, list[str]]:
    base = {
        "first_blocked_s": 1.0,
        "first_total_s": 1.0,
        "blocked_s": 1.0,
        "total_s": 1.0,
        "copy_s": 0.1,
        "blocked_per_copy": 10.0,
        "load_cold_s": 1.0,
        "load_warm_s": 1.0,
    }
    good = {"first_blocked_s": 0.1, "blocked_s": 0.1, "total_s": 0.8, "blocked_per_copy": 1.0, "load_cold_s": 0.9}
    match = Match([Contestant(name, (), role) for name, role in checkpoint.ROLES.items()], higher_is_better=False)
    for name in checkpoint.ROLES:
        details = {**base, **(good | ours if name == "ours" else {})}
        match.runs[name] = [Run(1, details["total_s"], {"wrong_tensors": 0.0}, details, 5.0, 0.0)]
    found = checkpoint.verdict(match)
    return found.ok, found.ratio, [check.name for check in found.checks if not check.ok]


def test_the_verdict_holds_ours_against_every_target() -> None:
    assert verdict_of() == (True, 1.25, [])
    for figure, value, failed in (
        ("blocked_per_copy", 1.3, "in copies of the state"),
        ("blocked_s", 0.2, "as a share of torch.save"),
        ("first_blocked_s", 0.2, "the first save"),
        ("load_cold_s", 1.1, "loading from the disk"),
    ):
        ok, _, names = verdict_of(**{figure: value})
        assert not ok and len(names) == 1 and failed in names[0]
    assert verdict_of(total_s=1.1)[1] == pytest.approx(1 / 1.1)
