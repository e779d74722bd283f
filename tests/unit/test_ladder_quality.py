"""How far apart two answers are, and what is still the same model: held against the formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deepseek.export.first_module import first_differing_layer
from deepseek.export.quality import Deviation, Figure, deviation, deviation_over, main_figure, objection


@given(st.integers(0, 2**31), st.floats(1e-6, 10.0), st.floats(0.01, 1000.0))
def test_errors_are_those_of_the_formulas(seed: int, noise: float, scale: float) -> None:
    generator = np.random.default_rng(seed)
    exact = (generator.standard_normal((3, 5)) * scale).astype(np.float32)
    other = (exact + generator.standard_normal((3, 5)) * noise).astype(np.float32)
    found = deviation({"y": torch.from_numpy(exact)}, {"y": torch.from_numpy(other)})
    difference = exact.astype(np.float64) - other
    assert found.max_abs_error == pytest.approx(np.abs(difference).max())
    assert found.relative_error == pytest.approx(np.abs(difference).max() / max(1, np.abs(exact).max()))
    snr = 10 * np.log10((exact.astype(np.float64) ** 2).sum() / max((difference**2).sum(), 1e-300))
    assert found.snr_db == pytest.approx(min(snr, 200), abs=1e-3)


def test_what_is_missing_or_not_a_number_is_infinitely_wrong() -> None:
    exact = {"a": torch.ones(2), "b": torch.tensor([1.0, -math.inf])}
    assert deviation(exact, {"a": torch.ones(2), "b": exact["b"].clone()}).max_abs_error == 0, "equal infinities"
    for wrong in ({"a": torch.ones(2)}, {"a": torch.ones(3), "b": exact["b"]}):
        assert deviation(exact, wrong).relative_error == math.inf
    spoiled = deviation(exact, {"a": torch.tensor([1.0, math.nan]), "b": exact["b"]})
    assert (spoiled.relative_error, spoiled.snr_db, spoiled.output) == (math.inf, -200.0, "a")
    mask = deviation({"m": torch.tensor([True, False])}, {"m": torch.tensor([True, True])})
    assert (mask.max_abs_error, mask.snr_db) == (1.0, 200.0)
    assert deviation({"e": torch.zeros(0)}, {"e": torch.zeros(0)}).max_abs_error == 0


def test_several_answers_have_one_ratio_and_the_worst_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted = [{"y": torch.randn(size, generator=generator), "z": torch.ones(1)} for size in (1, 4, 7)]
    found = [{"y": one["y"] + 0.01 * (1 + index), "z_out": one["z"]} for index, one in enumerate(wanted)]
    both = deviation_over(wanted, found)
    exact, other = (torch.cat([one["y"] for one in answers]).double() for answers in (wanted, found))
    assert both.snr_db == pytest.approx(
        10 * math.log10(exact.square().sum() / (exact - other).square().sum()), abs=1e-3
    )
    assert both.max_abs_error == pytest.approx(0.03, rel=1e-4) and both.output == "y"
    assert deviation_over(wanted, [{"y": one["y"]} for one in wanted]).relative_error == math.inf


def test_limits_by_precision() -> None:
    def seen(relative: float, snr: float) -> Deviation:
        return Deviation(relative, relative, snr, "y")

    assert objection("fp32", seen(1e-4, 50)) is None
    assert "off by 2.0e-04, allowed 1e-04" in str(objection("fp32", seen(2e-4, 50)))
    assert objection("bf16", seen(1, 25)) is None and "24.9 dB" in str(objection("bf16", seen(1, 24.9)))
    assert objection("int8", seen(1, 20)) is None and "19.9 dB" in str(objection("int8", seen(1, 19.9)))
    good, same, worse = (Figure("accuracy", value, True) for value in (0.9, 0.891, 0.88))
    assert objection("int8", seen(1, 5), good, same) is None
    assert "accuracy is 2.0% worse" in str(objection("int8", seen(1, 5), good, worse))
    assert objection("fp32", seen(1, 5), good, good) is not None, "a figure does not excuse a wrong export"


def test_the_figure_that_stands_for_a_task() -> None:
    assert main_figure({"loss": 2.0, "accuracy": 0.5, "f1": 0.4}) == ("accuracy", 0.5, True)
    assert main_figure({"loss": 2.0, "map50": 0.9, "map": 0.5}) == ("map", 0.5, True)
    assert main_figure({"loss": 2.0, "perplexity": 7.4}) == ("perplexity", 7.4, False)
    assert main_figure({"loss": math.nan}) is None and main_figure({}) is None
    assert Figure("loss", 2.2, False).drop_from(Figure("loss", 2.0, False)) == pytest.approx(0.1)
    assert Figure("map", 0.4, True).drop_from(Figure("map", 0.5, True)) == pytest.approx(0.1)


def test_the_first_layer_that_differs_is_named() -> None:
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).eval()

    x = torch.randn(2, 2, 4, 4)
    original, form = network(), network()
    with torch.no_grad():
        original[1].running_mean.add_(1.0)  # type: ignore[union-attr,operator]
        form[0].bias.sub_(1.0)  # type: ignore[union-attr,operator]
        form[1] = nn.Identity()
    assert first_differing_layer(original, lambda: original(x), form, lambda: form(x), 60.0) is None, "a folded norm"
    with torch.no_grad():
        form[4].weight.mul_(2)  # type: ignore[union-attr,operator]
    found = first_differing_layer(original, lambda: original(x), form, lambda: form(x), 60.0)
    assert found is not None and (found.name, found.kind) == ("4", "Linear") and found.snr_db < 20
