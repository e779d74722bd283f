"""GPTQ against the paper's update written out with explicit inverses, AWQ and GPTQ against rounding to the nearest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from deepseek.nn.int4_linear import Int4Linear
from deepseek.nn.int4_weights import choose_scales, dequantize_levels, round_to_levels
from deepseek.quantization import gptq
from deepseek.quantization.awq import awq_levels, output_error
from deepseek.quantization.gptq import DAMPING, gptq_levels, second_moments
from deepseek.quantization.low_bit import low_bit_layer
from tests.unit.test_int4_layers import low_bit_config


def correlated(samples: int, width: int) -> Tensor:
    hidden = torch.randn(samples, max(2, width // 4))
    return hidden @ torch.randn(hidden.shape[1], width) + 0.1 * torch.randn(samples, width)


def brute_force(weight: Tensor, inputs: Tensor, group_size: int | None, symmetric: bool, order: list[int]) -> Tensor:
    """Round input after input; after each, move what is left by -error / H^-1[q, q] * H^-1[q], H of what is left."""
    values, rows = weight.detach().double().clone(), inputs.double()
    hessian = rows.t() @ rows / len(rows)
    hessian += DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    scale, shift = choose_scales(weight, group_size, symmetric)
    result, size = torch.zeros_like(values), group_size or weight.shape[1]
    in_turn = order == sorted(order)
    for step, column in enumerate(order):
        group = column // size
        if group_size is not None and in_turn and column % size == 0:
            fresh = choose_scales(values[:, column : column + size], None, symmetric)
            scale[:, group] = fresh[0][:, 0]
            if shift is not None and fresh[1] is not None:
                shift[:, group] = fresh[1][:, 0]
        own = scale[:, [group]], None if shift is None else shift[:, [group]]
        levels = round_to_levels(values[:, [column]], *own, None)
        result[:, column] = dequantize_levels(levels, *own, None)[:, 0].double()
        left = order[step:]
        inverse = torch.linalg.inv(hessian[left][:, left])
        lost = (values[:, column] - result[:, column]) / inverse[0, 0]
        values[:, left] -= lost.unsqueeze(1) * inverse[0].unsqueeze(0)
    return result


@pytest.mark.parametrize("group_size", [None, 8, 5, 16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("block", [128, 4])
def test_gptq_is_the_algorithm_of_the_paper(
    group_size: int | None, symmetric: bool, act_order: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    monkeypatch.setattr(gptq, "BLOCK", block)
    weight, inputs = torch.randn(5, 18), correlated(200, 18)
    order = list(range(18))
    if act_order:
        order = sorted(order, key=lambda column: -float(inputs[:, column].double().square().mean()))
    found = gptq_levels(weight, inputs, group_size, symmetric, act_order)
    wanted = brute_force(weight, inputs, group_size, symmetric, order)
    torch.testing.assert_close(dequantize_levels(*found, group_size).double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("algorithm", ["gptq", "awq"])
def test_outputs_on_correlated_inputs_lose_less_than_by_rounding(
    group_size: int | None, symmetric: bool, algorithm: str
) -> None:
    linear = nn.Linear(48, 24)
    inputs = correlated(400, 48) * torch.logspace(-1, 1, 48)[torch.randperm(48)]  # a few channels carry most
    config = low_bit_config(
        algorithm=algorithm,
        granularity="per_group" if group_size else "per_channel",
        group_size=group_size or 128,
        quant_scheme="symmetric" if symmetric else "asymmetric",
    )
    fresh = inputs[200:].clone().requires_grad_()  # the exact path
    found = low_bit_layer(linear, "head", config, inputs[:200])
    plain = Int4Linear.from_linear(linear, group_size, symmetric)
    wanted = linear(fresh)
    assert (found(fresh) - wanted).square().mean() < 0.8 * (plain(fresh) - wanted).square().mean()


def test_awq_is_never_worse_than_rounding_on_its_own_inputs() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        weight, inputs = torch.randn(8, 20), torch.randn(50, 20)
        moments = second_moments(inputs)
        found = awq_levels(weight, inputs, 8, True)
        meant = dequantize_levels(found.levels, found.scale, found.zero_point, 8)
        if found.input_multiplier is not None:
            meant = meant * found.input_multiplier
        scale, shift = choose_scales(weight, 8, True)
        plain = dequantize_levels(round_to_levels(weight, scale, shift, 8), scale, shift, 8)
        assert output_error(weight - meant, moments) <= output_error(weight - plain, moments)


def test_the_error_is_that_of_the_outputs() -> None:
    difference, inputs = torch.randn(6, 9), torch.randn(30, 9)
    wanted = (inputs.double() @ difference.double().t()).square().sum(dim=1).mean()
    assert output_error(difference, second_moments(inputs)) == pytest.approx(float(wanted))


def test_inputs_that_are_always_zero_and_too_few_rows_do_no_harm() -> None:
    weight, inputs = torch.randn(4, 12), torch.randn(3, 12)
    inputs[:, 5] = 0
    for act_order in (False, True):
        levels, scale, _ = gptq_levels(weight, inputs, 4, True, act_order)
        assert bool(scale.isfinite().all())
        assert bool((levels[:, 5] == 8).all())
    assert awq_levels(weight, torch.zeros(3, 12), 4, True).input_multiplier is None
