"""Int8Linear against the same arithmetic written out in float64, in every mode, dtype and number of rows."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from deepseek.errors import ModelError
from deepseek.nn.int8_linear import Int8Linear, Int8Mode, integer_product_is_exact, quantize_rows, quantize_tokens

MODES: list[tuple[Int8Mode, bool]] = [
    ("dynamic", True),
    ("dynamic", False),
    ("static", True),
    ("static", False),
    ("weight_only", True),
]
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def int8_copy(linear: nn.Linear, mode: Int8Mode, symmetric: bool) -> Int8Linear:
    layer = Int8Linear.from_linear(linear, mode, symmetric)
    if mode == "static":
        layer.set_input_range(4 / 127, 0 if symmetric else 9)
    return layer


def reference(linear: nn.Linear, x: Tensor, mode: Int8Mode, symmetric: bool) -> Tensor:
    """The same layer in float64, one row and one channel at a time, with its own rounding."""
    weight = torch.empty(linear.weight.shape, dtype=torch.float64)
    for channel, values in enumerate(linear.weight.detach().double()):
        scale = values.abs().max() / 127
        weight[channel] = torch.round(values / scale) * scale
    rows = x.double().reshape(-1, linear.in_features).clone()
    for index, row in enumerate(rows):
        if mode == "dynamic" and symmetric:
            scale = row.abs().max() / 127
            rows[index] = torch.round(row / scale) * scale
        elif mode == "dynamic":
            low, high = min(row.min(), torch.tensor(0.0)), max(row.max(), torch.tensor(0.0))
            scale = (high - low) / 255
            zero_point = torch.round(-128 - low / scale)
            rows[index] = ((torch.round(row / scale) + zero_point).clamp(-128, 127) - zero_point) * scale
        elif mode == "static":
            scale, shift = 4 / 127, 0 if symmetric else 9
            rows[index] = ((torch.round(row / scale) + shift).clamp(-128, 127) - shift) * scale
    y = rows @ weight.T + (0 if linear.bias is None else linear.bias.detach().double())
    return y.reshape(*x.shape[:-1], linear.out_features)


@pytest.mark.parametrize(("mode", "symmetric"), MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 64), (5, 70), (2, 17, 64), (33, 7)])
def test_equals_the_dequantized_reference(
    mode: Int8Mode, symmetric: bool, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    linear = nn.Linear(shape[-1], 23)
    x = torch.randn(shape).to(dtype)
    wanted = reference(linear, x, mode, symmetric)
    with torch.no_grad():
        found = int8_copy(linear, mode, symmetric)(x)
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    # weight_only may round fp32 activations to bf16; a value half-way between two integers may round either way
    rounding = ROUNDING[torch.bfloat16 if mode == "weight_only" else dtype]
    level = float(x.abs().max()) / 127 * float(linear.weight.detach().abs().max())
    torch.testing.assert_close(found.double(), wanted, rtol=rounding, atol=rounding * 4 + level * 1.01)
    assert (found.double() - wanted).square().mean().sqrt() <= rounding * wanted.square().mean().sqrt()


@pytest.mark.parametrize("mode", ["dynamic", "weight_only"])
def test_one_row_answers_as_it_does_in_a_crowd(mode: Int8Mode) -> None:
    layer = int8_copy(nn.Linear(64, 40), mode, True)
    crowd = torch.randn(100, 64)
    with torch.no_grad():
        alone = torch.cat([layer(row) for row in crowd.split(1)])
        together = layer(crowd)
    tolerance = 1e-5 if mode == "dynamic" else 2e-2
    torch.testing.assert_close(alone, together, rtol=tolerance, atol=tolerance)


def test_without_bias_and_without_rows() -> None:
    for mode, symmetric in MODES:
        layer = int8_copy(nn.Linear(64, 16, bias=False), mode, symmetric)
        assert layer(torch.zeros(0, 3, 64)).shape == (0, 3, 16)
        assert torch.equal(layer(torch.zeros(2, 64)), torch.zeros(2, 16))


def test_the_weight_takes_a_quarter_of_the_memory_and_loses_no_more_than_half_a_step() -> None:
    weight = torch.randn(50, 30) * torch.logspace(-3, 3, 50).unsqueeze(1)
    weight[7] = 0
    integers, scale = quantize_rows(weight)
    assert integers.dtype == torch.int8
    assert int(integers.min()) >= -127
    error = (integers.double() * scale.double().unsqueeze(1) - weight.double()).abs()
    assert bool((error <= scale.double().unsqueeze(1) * 0.5000001).all())


def test_zero_stays_zero_with_any_zero_point() -> None:
    x = torch.randn(20, 9).relu() + torch.tensor([[0.0] * 8 + [3.0]])
    integers, scale, zero_point = quantize_tokens(x, symmetric=False)
    assert zero_point is not None
    meant = (integers - zero_point) * scale
    assert bool((meant[x == 0] == 0).all())
    assert bool(((meant - x).abs() <= scale * 0.51).all())


@pytest.mark.parametrize("mode", ["dynamic", "weight_only"])
def test_a_broken_row_stays_visible_and_harms_no_other(mode: Int8Mode) -> None:
    layer = int8_copy(nn.Linear(64, 8), mode, True)
    x = torch.randn(3, 64)
    clean = layer(x)
    x[1, 5] = float("nan")
    broken = layer(x)
    assert not bool(broken[1].isfinite().any())
    assert torch.equal(broken[[0, 2]], clean[[0, 2]])


def test_state_dict_is_plain_and_survives_safetensors() -> None:
    for mode, symmetric in MODES:
        layer = int8_copy(nn.Linear(64, 24), mode, symmetric)
        stored = safetensors.torch.load(safetensors.torch.save(layer.state_dict()))
        assert stored["weight"].dtype == torch.int8
        other = Int8Linear(64, 24, True, mode, symmetric)
        other.load_state_dict(stored)
        x = torch.randn(4, 64)
        assert torch.equal(layer(x), other(x))


@pytest.mark.parametrize(("mode", "symmetric"), MODES)
def test_gradients_pass_straight_through_to_the_input(mode: Int8Mode, symmetric: bool) -> None:
    layer = int8_copy(nn.Linear(64, 24), mode, symmetric)
    x = torch.randn(4, 64, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, layer.dequantized_weight().sum(0).expand(4, 64))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), y.detach(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_processor_that_saturates_gets_the_same_numbers(symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = int8_copy(nn.Linear(64, 24), "dynamic", symmetric)
    x = torch.randn(5, 64)
    wanted = layer(x)
    monkeypatch.setattr("deepseek.nn.int8_linear.integer_product_is_exact", lambda: False)
    monkeypatch.setattr(torch, "_int_mm", None)
    fallback = Int8Linear(64, 24, True, "dynamic", symmetric)
    fallback.load_state_dict(layer.state_dict())
    torch.testing.assert_close(fallback(x), wanted, rtol=1e-6, atol=1e-6)


def test_the_question_about_saturation_has_an_answer_even_on_the_meta_device() -> None:
    integer_product_is_exact.cache_clear()
    with torch.device("meta"):
        layer = Int8Linear(8, 8)
    assert layer.weight.is_meta


@pytest.mark.parametrize(("mode", "symmetric"), MODES)
def test_compiles_whole_for_one_row_and_for_many(mode: Int8Mode, symmetric: bool) -> None:
    layer = int8_copy(nn.Linear(64, 24), mode, symmetric)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for rows in (1, 40):
        x = torch.randn(rows, 64)
        torch.testing.assert_close(compiled(x), layer(x), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("mode", "symmetric"), MODES)
def test_torch_export_takes_any_number_of_rows(mode: Int8Mode, symmetric: bool) -> None:
    layer = int8_copy(nn.Linear(64, 24), mode, symmetric)
    program = torch.export.export(layer, (torch.randn(4, 64),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    for rows in (2, 50):
        x = torch.randn(rows, 64)
        torch.testing.assert_close(program.module()(x), layer(x), rtol=2e-2, atol=2e-2)


def test_an_unknown_mode_names_the_near_one() -> None:
    with pytest.raises(ModelError, match="did you mean 'dynamic'"):
        Int8Linear(4, 4, mode="dynamc")  # type: ignore[arg-type]  # what a wrong YAML value does


def test_only_a_static_layer_takes_a_range() -> None:
    with pytest.raises(ModelError, match="static"):
        Int8Linear(4, 4).set_input_range(0.1, 0)
