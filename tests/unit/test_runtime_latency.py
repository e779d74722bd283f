"""Timing of runs: percentiles by their definition, runs in turn, limits. No test looks at a time itself."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepseek.errors import ConfigError
from deepseek.evaluate import latency
from deepseek.evaluate.latency import Latency, measure, measure_in_turn


class Counter:
    """A runtime that writes down its runs, and how long each seems to take."""

    def __init__(self, name: str, log: list[str], seconds: float = 0.01) -> None:
        self.name, self.log, self.seconds = name, log, seconds

    def run(self, inputs: Mapping[str, Tensor]) -> None:
        self.log.append(self.name)
        CLOCK[0] += self.seconds


CLOCK = [0.0]


@pytest.fixture(autouse=True)
def _clock_that_only_runs_move(monkeypatch: pytest.MonkeyPatch) -> None:
    CLOCK[0] = 0.0
    monkeypatch.setattr(latency, "_now", lambda: CLOCK[0])


@given(st.lists(st.floats(1e-6, 10.0), min_size=1, max_size=300))
def test_percentiles_are_the_nearest_ranks(times: list[float]) -> None:
    found = Latency.of(times)
    for percent, value in ((50, found.p50_ms), (90, found.p90_ms), (99, found.p99_ms)):
        assert value == pytest.approx(np.percentile(times, percent, method="inverted_cdf") * 1e3)
    assert found.mean_ms == pytest.approx(np.mean(times) * 1e3)
    assert found.runs == len(times)


def test_runs_go_on_until_the_time_is_up() -> None:
    log: list[str] = []
    found = measure(Counter("a", log), {}, seconds=0.5, warmup=2)
    assert found.p50_ms == pytest.approx(10) and 49 <= found.runs <= 51
    assert len(log) == found.runs + 2
    assert measure(Counter("slow", log, 9.0), {}, seconds=0.5).runs == 3, "a few runs count whatever they take"
    assert measure(Counter("a", log), {}, seconds=5.0, max_runs=7).runs == 7


def test_several_runtimes_take_turns() -> None:
    log: list[str] = []
    first, second = measure_in_turn(
        [Counter("a", log, 0.02), Counter("b", log, 0.01)], {}, seconds=0.4, rounds=4, warmup=0
    )
    turns = [name for index, name in enumerate(log) if index == 0 or log[index - 1] != name]
    assert turns == ["a", "b"] * 4
    assert first.p50_ms == pytest.approx(2 * second.p50_ms)


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"rounds": 0}, {"warmup": -1}, {"max_runs": 0}])
def test_limits_that_time_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="nothing can be timed"):
        measure_in_turn([], {}, **wrong)  # type: ignore[arg-type]
