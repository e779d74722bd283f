"""Learned rounding against torch's own operators, the papers' formulas, and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepseek.nn.fake_quant.fake_quantize import fake_quantize, to_levels
from deepseek.nn.fake_quant.initial import highest_level, initial_steps

WEIGHTS = (-127, 127)


def no_ties(x: Tensor, step: Tensor) -> Tensor:
    """Move what lies half-way between two levels: torch multiplies by 1/step where we divide."""
    return torch.where(((x / step) % 1 - 0.5).abs() < 1e-3, x + 0.1 * step, x)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(5, 7), (5, 3, 4), (5, 2, 3, 3), (5, 2, 3, 3, 2)])
def test_rows_are_rounded_as_torch_rounds_channels(bits: int, shape: tuple[int, ...]) -> None:
    step = torch.rand(5) * 0.05 + 0.01
    x = no_ties(torch.randn(shape), step.reshape(-1, *(1,) * (len(shape) - 1)))
    highest = highest_level(bits)
    wanted = torch.fake_quantize_per_channel_affine(x, step, torch.zeros(5, dtype=torch.int32), 0, -highest, highest)
    torch.testing.assert_close(fake_quantize(x, step, None, (-highest, highest)), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("zero_point", [-128, -7, 0, 55])
def test_activations_are_rounded_as_torch_rounds_tensors(zero_point: int) -> None:
    step = torch.tensor(0.02)
    x = no_ties(torch.randn(4, 50) * 2, step)
    wanted = torch.fake_quantize_per_tensor_affine(x, 0.02, zero_point, -128, 127)
    found = fake_quantize(x, step, torch.tensor(float(zero_point)), (-128, 127))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


def test_the_gradient_of_steps_is_that_of_the_paper() -> None:
    x, step = torch.randn(3, 40, requires_grad=True), torch.tensor([0.005, 0.02, 0.1], requires_grad=True)
    upstream, factor = torch.randn(3, 40), 0.125
    fake_quantize(x, step, None, WEIGHTS, factor).backward(upstream)
    assert x.grad is not None and step.grad is not None
    wanted_step, wanted_x = torch.zeros(3), torch.zeros(3, 40)
    for row in range(3):  # equations 2, 3 and 5 of arXiv:1902.08153, a number at a time
        for column in range(40):
            v = float((x[row, column] / step[row]).detach())
            if v <= -127 or v >= 127:
                slope = -127.0 if v <= -127 else 127.0
            else:
                slope, wanted_x[row, column] = round(v) - v, upstream[row, column]
            wanted_step[row] += slope * upstream[row, column]
    torch.testing.assert_close(step.grad, wanted_step * factor, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, wanted_x)


@pytest.mark.parametrize("zero_point", [0.0, 108.0, 168.0])
def test_step_and_zero_point_learn_as_torch_lets_them(zero_point: float) -> None:
    """torch's operator is an implementation of its own. It calls the outermost half level inside, so none is there; and
    it cuts zero points towards 0, so none is negative."""
    step, zero = torch.tensor([0.03], requires_grad=True), torch.tensor([zero_point], requires_grad=True)
    x = no_ties(torch.randn(6, 50) * 3, step.detach())
    levels = x / 0.03 + zero_point
    at_the_edge = (levels.abs() < 0.6) | ((levels - 255).abs() < 0.6)
    x = torch.where(at_the_edge, (5.3 - zero_point) * 0.03, x).requires_grad_()
    upstream = torch.randn(6, 50)
    torch._fake_quantize_learnable_per_tensor_affine(x, step, zero, 0, 255, 0.5).backward(upstream)
    assert step.grad is not None and zero.grad is not None and x.grad is not None
    wanted = step.grad.clone(), zero.grad.clone(), x.grad.clone()
    own_step, own_zero = torch.tensor(0.03, requires_grad=True), torch.tensor(zero_point, requires_grad=True)
    x.grad = None
    fake_quantize(x, own_step, own_zero, (0, 255), 0.5).backward(upstream)
    assert own_step.grad is not None and own_zero.grad is not None
    torch.testing.assert_close(own_step.grad, wanted[0][0], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(own_zero.grad, wanted[1][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x.grad, wanted[2])


def test_outside_the_levels_the_gradient_is_the_difference_quotient() -> None:
    x = torch.tensor([[-3.0, 4.0, 9.0]])
    step = torch.tensor([0.01], requires_grad=True)
    fake_quantize(x, step, None, WEIGHTS).sum().backward()
    assert step.grad is not None
    ends = [fake_quantize(x, torch.tensor([0.01 + change]), None, WEIGHTS).double().sum() for change in (1e-4, -1e-4)]
    assert float(step.grad) == pytest.approx(float(ends[0] - ends[1]) / 2e-4, rel=1e-3)


def test_bf16_goes_in_and_out_and_steps_learn_in_fp32() -> None:
    x = torch.randn(4, 8).bfloat16().requires_grad_()
    step = torch.full((4,), 0.05, requires_grad=True)
    y = fake_quantize(x, step, None, WEIGHTS)
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad is not None and x.grad.dtype == torch.bfloat16
    assert step.grad is not None and step.grad.dtype == torch.float32
    assert torch.equal(to_levels(x, step, None, WEIGHTS), (x.float() / 0.05).round().clamp(*WEIGHTS))


def test_steps_begin_as_the_papers_say() -> None:
    weight = torch.randn(6, 3, 5, 5)
    weight[2] = 0
    lsq = initial_steps(weight, 4, "lsq")
    assert torch.allclose(lsq[[0, 5]], 2 * weight[[0, 5]].abs().mean(dim=(1, 2, 3)) / 7**0.5)
    for bits in (4, 8):
        highest, mse = highest_level(bits), initial_steps(weight, bits)
        assert float(mse[2]) == float(mse[[0, 1, 3, 4, 5]].median()) and float(lsq[2]) > 1e-3
        for row in (0, 1, 3):  # no other share of the largest weight does better
            errors = {
                share: float((weight[row] - rounded(weight[row], share, highest)).square().sum())
                for share in torch.linspace(0.3, 1, 29).tolist()
            }
            found = float((weight[row] - fake_quantize(weight, mse, None, (-highest, highest))[row]).square().sum())
            assert found == pytest.approx(min(errors.values()), rel=1e-4)


def test_a_layer_of_zeros_can_learn() -> None:
    steps = initial_steps(torch.zeros(3, 16), 8)
    assert torch.allclose(steps, torch.full((3,), 1 / (127 * 4)))


def rounded(row: Tensor, share: float, highest: int) -> Tensor:
    step = row.abs().max() * share / highest
    return (row / step).round().clamp(-highest, highest) * step
