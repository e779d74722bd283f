"""Dropout by hashed places: how many, which ones, what is left, its gradient; and when it is torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.nn import choices
from deepseek.nn.dropout import _hashed, _mix, dropout


def dropped(rate: float, *shape: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return _hashed(torch.ones(shape), rate) == 0


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_is_the_rate_within_chance(rate: float) -> None:
    shares = torch.stack([dropped(rate, 1 << 14, seed=seed).double().mean() for seed in range(60)])
    deviation = (rate * (1 - rate) / (1 << 14)) ** 0.5
    assert float((shares - rate).abs().max()) < 4.5 * deviation
    assert 0.7 < float(shares.std()) / deviation < 1.35  # neither more nor less even than chance


def test_what_is_dropped_has_no_pattern_over_places_calls_or_bits() -> None:
    masks = torch.stack([dropped(0.5, 256, 256, seed=seed).double() for seed in range(40)]) - 0.5
    places = masks.flatten(1)
    bound = 4.5 / (40 * 256 * 256) ** 0.5
    for step in (1, 2, 3, 16, 64, 255, 256, 257, 1024, 4096, 32768):
        assert abs(float((places[:, step:] * places[:, :-step]).mean()) * 4) < bound * 1.5, step
    calls = torch.corrcoef(places)
    assert float((calls - torch.eye(40)).abs().max()) < 5 / 256
    assert float(masks.mean(1).std() * 2 * 16) == pytest.approx(1, abs=0.05)  # columns
    assert float(masks.mean(2).std() * 2 * 16) == pytest.approx(1, abs=0.05)  # rows
    assert float((masks.mean(0) * 2 * 40**0.5).square().mean()) == pytest.approx(1, abs=0.05)  # a place over calls


def test_keys_that_differ_in_one_bit_drop_elements_that_have_nothing_in_common() -> None:
    place = torch.arange(1 << 14, dtype=torch.int32)
    base = _mix(_mix(place ^ 5) + 9) < 0
    for first, second in ((4, 9), (5, 8), (5 + (1 << 13), 9), (5, 9 + (1 << 30))):
        other = _mix(_mix(place ^ first) + second) < 0
        assert float((base == other).double().mean()) == pytest.approx(0.5, abs=0.02)


def test_mixing_is_one_to_one_and_equal_to_plain_integers() -> None:
    numbers = torch.randint(-(2**31), 2**31, (4096,), dtype=torch.int64, generator=torch.Generator().manual_seed(0))
    numbers = numbers.unique().to(torch.int32)

    def mix(x: int) -> int:
        x &= 0xFFFFFFFF
        x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
        x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
        return x ^ x >> 16

    found = _mix(numbers)
    assert [value & 0xFFFFFFFF for value in found.tolist()] == [mix(value) for value in numbers.tolist()]
    assert len(found.unique()) == len(numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_is_left_is_scaled_and_its_gradient_is_the_same_mask(dtype: torch.dtype) -> None:
    x = torch.randn(64, 32, dtype=dtype, requires_grad=True)
    y = _hashed(x, 0.25)
    assert y.dtype == dtype
    kept = y != 0
    torch.testing.assert_close(y[kept], x[kept] * (1 / 0.75))
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, kept.to(dtype) * (1 / 0.75))


def test_it_follows_from_torchs_seed_and_each_call_differs() -> None:
    torch.manual_seed(3)
    first, second = _hashed(torch.ones(999), 0.5), _hashed(torch.ones(999), 0.5)
    torch.manual_seed(3)
    assert torch.equal(_hashed(torch.ones(999), 0.5), first) and not torch.equal(first, second)


def test_eager_code_takes_torchs_dropout_and_evaluation_none() -> None:
    x = torch.randn(40)
    torch.manual_seed(1)
    ours = dropout(x, 0.3)
    torch.manual_seed(1)
    assert torch.equal(ours, F.dropout(x, 0.3))
    assert dropout(x, 0.3, training=False) is x and dropout(x, 0.0) is x


def test_compiled_code_hashes_unless_torchs_is_chosen() -> None:
    graphs: list[list[str]] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: dropout(x, 0.5), backend=backend)
    compiled(torch.ones(64))
    with choices.using({"dropout": "torch"}):
        compiled(torch.ones(64))
    torch._dynamo.reset()
    assert ["dropout" in " ".join(graph) for graph in graphs] == [False, True]
