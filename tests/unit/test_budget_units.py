"""Sizes, times and losses of quality as people write them: what they mean, and what is refused."""

from __future__ import annotations

import pytest

from deepseek.compress import CompressConfig
from deepseek.compress.budget import Budget
from deepseek.compress.search.front import cheapest, nearest, pareto
from deepseek.compress.units import Drop, parse_drop, parse_latency, parse_seconds, parse_size
from deepseek.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"), [("1.2MB", 1_200_000), ("600 kB", 600_000), ("4MiB", 4 << 20), (".5gb", 500_000_000), ("77B", 77)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_times_and_losses() -> None:
    assert (parse_latency("20ms"), parse_latency("500us"), parse_latency("1.5 s")) == (20.0, 0.5, 1500.0)
    assert (parse_seconds("30s"), parse_seconds("10m"), parse_seconds("1h")) == (30.0, 600.0, 3600.0)
    assert parse_drop("1%") == Drop(0.01, True) and str(parse_drop("1%")) == "1%"
    assert parse_drop("0.01") == parse_drop(0.01) == Drop(0.01, False) and str(parse_drop(0.01)) == "0.01"


@pytest.mark.parametrize("text", ["1.2", "1.2 bananas", "MB", "", "-3MB", "0MB", "1.2.3MB", "1,2MB", "nan", "infMB"])
def test_a_size_that_says_nothing_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="(?s)size.*1.2MB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["20", "20min", "ms", "-1ms", "0ms"])
def test_a_latency_that_says_nothing_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="(?s)latency.*20ms"):
        parse_latency(text)


@pytest.mark.parametrize("text", ["a bit", "-1%", "1%%", "", "1 MB", -0.1, float("nan"), True])
def test_a_loss_that_says_nothing_is_refused_with_an_example(text: str | float) -> None:
    with pytest.raises(ConfigError, match="(?s)max_drop.*1%.*0.01"):
        parse_drop(text)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"size": "1.2"}, "size"), ({"latency": "fast"}, "latency"), ({"max_drop": "much"}, "max_drop")]
    + [({"size": "1MB", "time": "soon"}, "time")],
)
def test_a_config_names_the_wrong_setting(settings: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        CompressConfig(**settings)  # type: ignore[arg-type]  # texts for fields that take texts


def test_no_limit_is_no_budget() -> None:
    assert CompressConfig().budget() is None
    assert CompressConfig(size="1MB", latency="2ms").budget() == Budget(1_000_000, 2.0, 600.0)


def point(name: str, size: float, time: float, drop: float | None) -> dict[str, object]:
    return {"name": name, "bytes": size, "latency_ms": time, "drop": drop}


POINTS = [
    point("whole", 100, 10, 0.0),
    point("small", 25, 12, 0.002),
    point("fast", 50, 4, 0.02),
    point("worse than small", 30, 12, 0.002),
    point("twin of fast", 50, 4, 0.02),
    point("broken", 1, 1, None),
]


def test_the_front_has_what_no_other_point_beats() -> None:
    assert [one["name"] for one in pareto(POINTS)] == ["whole", "small", "fast"]


def test_the_cheapest_point_is_the_fastest_that_keeps_every_limit() -> None:
    names = {0.05: "fast", 0.01: "small", 0.001: None}
    for allowed, wanted in names.items():
        found = cheapest(POINTS, Budget(bytes=60), allowed)
        assert (found["name"] if found else None) == wanted


def test_the_nearest_point_is_least_past_its_worst_limit() -> None:
    near = nearest(POINTS, Budget(bytes=20), 0.01)
    assert near is not None and near["name"] == "small"  # 25 % too large; `fast` is twice too bad and too large
    assert nearest([], Budget(bytes=20), 0.01) is None
