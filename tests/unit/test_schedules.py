"""Learning-rate schedules, held against torch's own schedulers and the papers' formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deepseek.optim.schedules import default_warmup_steps, learning_rate, schedule_points


def rates(schedule: str, total: int, warmup: int, peak: float = 1.0, floor: float = 0.1, **more: Any) -> list[float]:
    settings: dict[str, Any] = {"peak": peak, "total_steps": total, "warmup_steps": warmup, "schedule": schedule}
    return [learning_rate(step, floor=floor, **settings, **more) for step in range(total)]


def test_one_cycle_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2.0, total_steps=50, pct_start=0.3, cycle_momentum=False, final_div_factor=100.0
    )
    wanted = []
    for _ in range(50):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(wanted) < 50:
            scheduler.step()
    assert rates("one_cycle", 50, default_warmup_steps("one_cycle", 50), 2.0, 1 / 2500) == pytest.approx(wanted)


def test_wsd_stays_and_then_falls_in_its_share_of_the_steps() -> None:
    found = rates("wsd", 100, 10, 2.0, 0.25, decay_share=0.3)
    assert found[:10] == pytest.approx([2.0 * step / 10 for step in range(1, 11)])
    assert found[10:70] == [2.0] * 60
    assert found[70:] == pytest.approx([2.0 * (0.25 + 0.75 * (1 - step / 30)) for step in range(30)])
    rooted = rates("wsd", 100, 10, 2.0, 0.25, decay_share=0.3, decay_shape="sqrt")
    assert rooted[70:] == pytest.approx([2.0 * (0.25 + 0.75 * (1 - math.sqrt(step / 30))) for step in range(30)])
    assert learning_rate(
        100, peak=2.0, total_steps=100, warmup_steps=10, schedule="wsd", floor=0.25
    ) == pytest.approx(0.5)  # fmt: skip


def test_a_warm_up_longer_than_the_stable_part_moves_the_decay_back() -> None:
    found = rates("wsd", 10, 9, floor=0.0, decay_share=0.5)
    assert found == pytest.approx([step / 9 for step in range(1, 10)] + [1.0])


@given(
    total=st.integers(1, 300),
    warmup=st.integers(0, 400),
    peak=st.floats(1e-8, 10),
    floor=st.floats(0, 1),
    schedule=st.sampled_from(["wsd", "one_cycle"]),
    share=st.floats(0.01, 1),
    shape=st.sampled_from(["linear", "sqrt"]),
)
def test_rates_rise_to_the_peak_and_never_below_the_floor_again(
    total: int, warmup: int, peak: float, floor: float, schedule: str, share: float, shape: str
) -> None:
    found = rates(schedule, total, warmup, peak, floor, decay_share=share, decay_shape=shape)
    assert all(0 <= rate <= peak * (1 + 1e-9) for rate in found)
    warm = found[max(0, warmup - 1) :]
    assert all(rate >= floor * peak * (1 - 1e-9) for rate in warm)
    assert all(later <= earlier + peak * 1e-12 for earlier, later in zip(warm, warm[1:], strict=False))
    assert not warm or warm[0] == pytest.approx(peak)
    cold = found[:warmup]
    assert all(earlier <= later for earlier, later in zip(cold, cold[1:], strict=False))


def test_default_warm_up() -> None:
    assert [default_warmup_steps("cosine", steps) for steps in (5, 50, 100, 400, 5000)] == [0, 5, 10, 10, 100]
    assert default_warmup_steps("one_cycle", 200) == 60


@pytest.mark.parametrize("total", [1, 2, 7, 1000])
def test_points_to_draw_begin_and_end_where_the_run_does(total: int) -> None:
    points = schedule_points(peak=1.0, total_steps=total, warmup_steps=3, schedule="cosine", floor=0.0, points=20)
    assert [points[0][0], points[-1][0]] == [0, total - 1] and len(points) == min(20, total)
    assert all(rate == rates("cosine", total, 3, floor=0.0)[step] for step, rate in points)
    assert [step for step, _ in points] == sorted({step for step, _ in points})
