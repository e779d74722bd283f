"""Rotary positions: against complex numbers, their properties, and the errors of the scaling's settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek.errors import ConfigError
from deepseek.nn.rotary import rotary_frequencies, rotate_halves, rotate_pairs, rotation
from deepseek.nn.rotary_scaling import RotaryScaling

CPU = torch.device("cpu")


def by_complex_numbers(x: Tensor, base: float) -> Tensor:
    """Turn neighbouring dimensions of (time, dim) as the paper says: each pair is a complex number."""
    time, dim = x.shape
    turned = []
    for position in range(time):
        for pair in range(dim // 2):
            number = complex(float(x[position, 2 * pair]), float(x[position, 2 * pair + 1]))
            angle = position * base ** (-2 * pair / dim)
            number *= complex(math.cos(angle), math.sin(angle))
            turned += [number.real, number.imag]
    return torch.tensor(turned).view(time, dim)


@pytest.mark.parametrize(("dim", "base"), [(2, 10000.0), (8, 10000.0), (6, 500.0)])
def test_pairs_turn_like_complex_numbers(dim: int, base: float) -> None:
    x = torch.randn(13, dim)
    found = rotate_pairs(x, rotation(torch.arange(13), dim, base))
    torch.testing.assert_close(found, by_complex_numbers(x, base), atol=1e-5, rtol=1e-5)


def test_halves_are_the_same_turn_of_other_dimensions() -> None:
    x, turn = torch.randn(2, 3, 7, 10), rotation(torch.arange(7), 10, 10000.0)
    order = torch.tensor([0, 2, 4, 6, 8, 1, 3, 5, 7, 9])  # first of each pair, then the second
    torch.testing.assert_close(rotate_halves(x[..., order], turn), rotate_pairs(x, turn)[..., order])


@pytest.mark.parametrize("rotate", [rotate_halves, rotate_pairs])
def test_products_depend_on_the_distance_alone(rotate: Any) -> None:
    query, key = torch.randn(2, 16, dtype=torch.float64)

    def product(query_at: int, key_at: int) -> float:
        turned = [
            rotate(x[None], rotation(torch.tensor([at]), 16, 100.0)) for x, at in ((query, query_at), (key, key_at))
        ]
        return float((turned[0] * turned[1]).sum())

    for distance in (0, 1, 5):
        products = [product(start + distance, start) for start in (0, 3, 90)]
        assert products == pytest.approx([products[0]] * 3, rel=1e-4)
    assert product(0, 0) == pytest.approx(float(query @ key))
    assert product(0, 1) != pytest.approx(product(0, 2), rel=1e-3)


def test_bfloat16_inputs_are_turned_by_exact_angles() -> None:
    x, position = torch.randn(4000, 8), torch.arange(4000)
    exact = rotate_halves(x.bfloat16().double(), rotation(position, 8, 10000.0))
    found = rotate_halves(x.bfloat16(), rotation(position, 8, 10000.0))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, atol=0.02, rtol=0.01)


def test_llama3_leaves_fast_pairs_and_slows_the_slow_ones() -> None:
    scaling = RotaryScaling(type="llama3", factor=8.0, original_length=8192)
    plain, scaled = (rotary_frequencies(128, 500000.0, CPU, x) for x in (None, scaling))
    turns = plain * 8192 / (2 * math.pi)
    torch.testing.assert_close(scaled[turns > 4], plain[turns > 4])
    torch.testing.assert_close(scaled[turns < 1], plain[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.any() and ((scaled < plain) & (scaled > plain / 8))[between].all()


def test_yarn_has_the_numbers_of_its_paper() -> None:
    scaling = RotaryScaling(type="yarn", factor=16.0, original_length=4096)
    plain, scaled = (rotary_frequencies(128, 10000.0, CPU, x) for x in (None, scaling))
    torch.testing.assert_close(scaled[0], plain[0])
    torch.testing.assert_close(scaled[-1], plain[-1] / 16)
    assert scaling.amplitude == pytest.approx(0.1 * math.log(16) + 1)
    assert scaling.score_factor == 1.0
    v3 = RotaryScaling(type="yarn", factor=40.0, original_length=4096, mscale=1.0, mscale_all_dim=1.0)
    assert v3.amplitude == 1.0 and v3.score_factor == pytest.approx((0.1 * math.log(40) + 1) ** 2)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"type": "dynamic", "factor": 2.0}, "llama3"),
        ({"type": "llama3", "factor": 8.0}, "original_length"),
        ({"type": "linear", "factor": 2.0, "beta_fast": 3.0}, "beta_fast has no effect"),
        ({"type": "linear", "factor": 0.5}, "factor"),
        (
            {"type": "llama3", "factor": 8.0, "original_length": 9, "low_frequency_factor": 5.0},
            "high_frequency_factor 4.0",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        RotaryScaling(**settings)
