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
