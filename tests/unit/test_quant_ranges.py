"""Streaming histograms and the ranges chosen from them, against all values kept and searched by brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepseek.errors import QuantizationError
from deepseek.quantization.config import Calibration
from deepseek.quantization.observers import BINS, Histogram
from deepseek.quantization.ranges import find_range, scale_and_zero_point


def histogram_of(*batches: Tensor) -> Histogram:
    histogram = Histogram("layer")
    for batch in batches:
        histogram.observe(batch)
    return histogram


def squared_error(values: Tensor, low: float, high: float, symmetric: bool) -> float:
    scale, zero_point = scale_and_zero_point(low, high, symmetric)
    levels = (torch.round(values.double() / scale) + zero_point).clamp(-127 if symmetric else -128, 127)
    return float(((levels - zero_point) * scale - values).square().mean())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=6), st.integers(0, 1000))
def test_no_value_is_lost_or_moved_when_the_range_grows(spreads: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(200, generator=generator) * spread for spread in spreads]
    histogram = histogram_of(*batches)
    values = torch.cat(batches).double()
    assert histogram.counts.sum() == values.numel()
    assert (histogram.low, histogram.high) == (float(values.min()), float(values.max()))
    width = 2 * histogram.limit / BINS
    below = histogram.counts.cumsum(0)
    for edge in (BINS // 4, BINS // 2, 3 * BINS // 4):
        position = edge * width - histogram.limit
        near = int(((values - position).abs() < 1e-3 * width).sum())  # such a value may count on either side
        assert abs(float(below[edge - 1]) - float((values < position).sum())) <= near


def test_memory_does_not_grow_with_the_data() -> None:
    histogram = histogram_of(*(torch.randn(1000) * scale for scale in (1, 10, 100, 1e6)))
    assert histogram.counts.shape == (BINS,)


def test_millions_of_equal_values_are_counted_exactly() -> None:
    histogram = histogram_of(torch.zeros(20_000_000), torch.ones(3))
    assert histogram.counts.sum() == 20_000_003


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_names_the_layer(value: float) -> None:
    with pytest.raises(QuantizationError, match="'layer' is not finite"):
        histogram_of(torch.tensor([1.0, value]))


def test_minmax_covers_all() -> None:
    values = torch.tensor([-1.0, 0.5, 3.0])
    assert find_range(histogram_of(values), "minmax", symmetric=True) == (-3.0, 3.0)
    assert find_range(histogram_of(values), "minmax", symmetric=False) == (-1.0, 3.0)
    assert find_range(histogram_of(values.abs()), "minmax", symmetric=False) == (0.0, 3.0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_percentile_leaves_out_one_in_ten_thousand(symmetric: bool) -> None:
    values = torch.randn(200_000)
    values[:2] = torch.tensor([40.0, -40.0])
    low, high = find_range(histogram_of(values), "percentile", symmetric)
    outside = float(((values < low) | (values > high)).double().mean())
    assert 0.2e-4 < outside < 2e-4


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "outlier"])
def test_mse_finds_nearly_the_best_range_there_is(kind: str, symmetric: bool) -> None:
    values = torch.randn(50_000)
    if kind == "laplace":
        values = torch.distributions.Laplace(0.0, 1.0).sample(torch.Size([50_000]))
    elif kind == "relu":
        values = values.relu()
    elif kind == "outlier":
        values[0] = 20.0
    low, high = find_range(histogram_of(values), "mse", symmetric)
    full_low, full_high = find_range(histogram_of(values), "minmax", symmetric)
    fractions = torch.linspace(0.05, 1, 200).tolist()
    best = min(squared_error(values, full_low * part, full_high * part, symmetric) for part in fractions)
    assert squared_error(values, low, high, symmetric) <= 1.05 * best


@pytest.mark.parametrize("symmetric", [True, False])
def test_kl_cuts_a_lone_outlier_and_keeps_a_plain_distribution(symmetric: bool) -> None:
    plain = torch.randn(100_000)
    low, high = find_range(histogram_of(plain), "kl", symmetric)
    assert high > 0.6 * float(plain.abs().max())
    outlier = torch.cat([plain, torch.tensor([60.0, -60.0])])
    low, high = find_range(histogram_of(outlier), "kl", symmetric)
    assert 3.0 < high < 45.0
    assert squared_error(plain, low, high, symmetric) < squared_error(plain, -60.0, 60.0, symmetric)


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "mse", "kl"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [0.0, 1e-20, -3.0, 5e8])
def test_a_constant_input_has_a_usable_range(calibration: Calibration, symmetric: bool, value: float) -> None:
    low, high = find_range(histogram_of(torch.full((100,), value)), calibration, symmetric)
    assert low <= 0 <= high
    scale, zero_point = scale_and_zero_point(low, high, symmetric)
    assert scale > 0 and -128 <= zero_point <= 127
    assert squared_error(torch.tensor([value]), low, high, symmetric) <= (abs(value) / 100) ** 2


def test_zero_is_an_integer_in_every_asymmetric_range() -> None:
    for low, high in ((-1.0, 3.0), (0.0, 7.0), (-2.0, 0.0), (-0.17, 9.3)):
        scale, zero_point = scale_and_zero_point(low, high, symmetric=False)
        assert isinstance(zero_point, int)
        assert abs((-128 - zero_point) * scale - low) <= scale
        assert abs((127 - zero_point) * scale - high) <= scale


def divergence_by_definition(histogram: Histogram, low: float, high: float, symmetric: bool) -> float:
    """KL(P||Q) of a histogram cut to a range and told in integers, bin by bin in plain Python.

    P: the counts of the bins inside, those cut off added to the outermost bin in use. Q: each integer's counts spread
    evenly over its bins in use, no probability below 1e-6. Exact zeros beyond their neighbours are left out.
    """
    counts, centers = histogram.counts.tolist(), histogram.centers().tolist()
    middle = len(counts) // 2
    counts[middle] = min(counts[middle], max(counts[middle - 1], counts[middle + 1]))
    scale, zero_point = scale_and_zero_point(low, high, symmetric)
    lowest, below, above = -127 if symmetric else -128, 0.0, 0.0
    used: list[tuple[float, int]] = []
    for count, center in zip(counts, centers, strict=True):
        level = round(center / scale) + zero_point
        if count and level < lowest:
            below += count
        elif count and level > 127:
            above += count
        elif count:
            used.append((count, level))
    if not used:
        return math.inf
    mass: dict[int, float] = {}
    bins: dict[int, int] = {}
    for count, level in used:
        mass[level], bins[level] = mass.get(level, 0.0) + count, bins.get(level, 0) + 1
    p = [count for count, _ in used]
    p[0], p[-1] = p[0] + below, p[-1] + above
    q = [mass[level] / bins[level] for _, level in used]
    total_p, total_q = sum(p), sum(q)
    return sum(a / total_p * math.log((a / total_p) / max(b / total_q, 1e-6)) for a, b in zip(p, q, strict=True) if a)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", ["normal", "relu", "outlier"])
def test_kl_equals_its_definition(kind: str, symmetric: bool) -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(3))
    values = values.relu() if kind == "relu" else values
    values[0] = 30.0 if kind == "outlier" else values[0]
    histogram = histogram_of(values)
    full = find_range(histogram, "minmax", symmetric)
    fractions = [2 ** (-8 + step / 20) for step in range(0, 161)]
    tried = [(full[0] * part, full[1] * part) for part in fractions]
    costs = [divergence_by_definition(histogram, *one, symmetric) for one in tried]
    found = find_range(histogram, "kl", symmetric)
    assert divergence_by_definition(histogram, *found, symmetric) == pytest.approx(min(costs), rel=1e-9)
    finer = [divergence_by_definition(histogram, full[0] * s / 60, full[1] * s / 60, symmetric) for s in range(1, 61)]
    assert min(costs) <= 1.1 * min(finer) + 1e-4


@given(st.lists(st.tuples(st.floats(-9, 0), st.floats(0, 9)), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_moving_average_is_the_mean_of_the_first_batches(ends: list[tuple[float, float]]) -> None:
    histogram = histogram_of(*(torch.tensor(pair, dtype=torch.float32) for pair in ends))
    low, high = find_range(histogram, "moving_average", symmetric=False)
    assert low == pytest.approx(sum(pair[0] for pair in ends) / len(ends), abs=1e-5)
    assert high == pytest.approx(sum(pair[1] for pair in ends) / len(ends), abs=1e-5)


def test_moving_average_follows_slowly_once_it_has_seen_enough() -> None:
    histogram = histogram_of(*(torch.tensor([-1.0, 1.0]) for _ in range(200)), torch.tensor([-1.0, 101.0]))
    assert find_range(histogram, "moving_average", symmetric=False)[1] == pytest.approx(2.0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_percentile_does_not_cut_off_what_matters(symmetric: bool) -> None:
    """A few large values among many small ones, as in attention and SiLU: cut at 99.99 %, the layer says nothing."""
    values = torch.randn(100_000) * 0.01
    values[:8] = 5.0
    low, high = find_range(histogram_of(values), "percentile", symmetric)
    full = find_range(histogram_of(values), "minmax", symmetric)
    assert squared_error(values, low, high, symmetric) <= 2.1 * squared_error(values, *full, symmetric)
