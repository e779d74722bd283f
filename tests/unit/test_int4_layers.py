"""4-bit and ternary layers against the same arithmetic written out, on every path, and what they refuse."""

from __future__ import annotations

import copy
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepseek.errors import ModelError, QuantizationError
from deepseek.nn.int4_kernel import kernel_is_right
from deepseek.nn.int4_layers import Int4Conv2d, Int4Embedding
from deepseek.nn.int4_linear import Int4Linear
from deepseek.nn.int4_weights import choose_scales
from deepseek.nn.int8_swap import int8_specs, set_layer, swap_linears
from deepseek.nn.packed_bits import pack, packed_size, unpack
from deepseek.nn.ternary_layers import TernaryConv2d, TernaryLinear
from deepseek.quantization.low_bit import low_bit_layer, low_bit_obstacle
from tests.toy_language_model import ToyLanguageModel

CASES = [(64, None, True), (64, 32, True), (64, 32, False), (160, 128, False), (96, 128, True), (37, 16, False)]


def low_bit_config(**changes: Any) -> Any:
    values = {"weight_bits": 4, "activation_bits": None, "quant_scheme": "symmetric", "granularity": "per_group"}
    return types.SimpleNamespace(**{**values, "group_size": 32, "algorithm": "rtn", **changes})


def rounded(weight: Tensor, group_size: int | None, symmetric: bool) -> Tensor:
    """The weight after 4 bits, one group at a time in float64."""
    result = weight.detach().double().clone()
    size = group_size or weight.shape[1]
    for row in result:
        for start in range(0, len(row), size):
            group = row[start : start + size]
            low, high = min(float(group.min()), 0.0), max(float(group.max()), 0.0)
            step = max(-low, high) / 7 if symmetric else (high - low) / 15
            step = float(torch.tensor(step).bfloat16())
            shift = 0 if symmetric else min(15, round(-low / step))
            lowest, highest = (-7, 7) if symmetric else (-shift, 15 - shift)
            group.copy_(torch.round(group / step).clamp(lowest, highest) * step)
    return result


@given(
    bits=st.sampled_from([1, 2, 4]),
    values=st.lists(st.integers(0, 15), min_size=1, max_size=40),
    rows=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_what_is_packed_comes_back(bits: int, values: list[int], rows: int) -> None:
    tensor = torch.tensor([values] * rows, dtype=torch.uint8) % 2**bits
    packed = pack(tensor, bits)
    assert packed.shape == (rows, packed_size(len(values), bits))
    assert torch.equal(unpack(packed, bits, len(values)), tensor)


def test_three_bits_have_no_packing() -> None:
    with pytest.raises(ModelError, match="3 bits"):
        packed_size(8, 3)


@pytest.mark.parametrize(("width", "group_size", "symmetric"), CASES)
@pytest.mark.parametrize("rows", [1, 5, 200])
def test_a_linear_layer_equals_the_one_on_rounded_weights(
    width: int, group_size: int | None, symmetric: bool, rows: int
) -> None:
    linear = nn.Linear(width, 23)
    layer = Int4Linear.from_linear(linear, group_size, symmetric)
    weight = rounded(linear.weight, group_size, symmetric)
    torch.testing.assert_close(layer.dequantized_weight().double(), weight, rtol=1e-6, atol=1e-7)
    x = torch.randn(rows, width)
    wanted = F.linear(x.double(), weight, linear.bias.detach().double())
    with torch.no_grad():
        found = layer(x)
    assert found.dtype == torch.float32
    assert (found - wanted).square().mean().sqrt() <= 6e-3 * wanted.square().mean().sqrt()  # inputs rounded to bf16
    exact = layer(x.requires_grad_())
    torch.testing.assert_close(exact.double(), wanted, rtol=1e-5, atol=1e-5)
    assert layer(torch.zeros(0, 3, width)).shape == (0, 3, 23)
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_torchs_kernel_is_used_on_this_kind_of_processor_and_sees_new_weights() -> None:
    if not kernel_is_right():
        pytest.skip("this build of torch has no 4-bit kernel for this processor")
    layer, x = Int4Linear.from_linear(nn.Linear(64, 32), 32, False), torch.randn(3, 64)
    with torch.no_grad():
        before = layer(x)
        clone = copy.deepcopy(layer)
        layer.load_state_dict(Int4Linear.from_linear(nn.Linear(64, 32), 32, False).state_dict())
        after = layer(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, F.linear(x, layer.dequantized_weight(), layer.bias), rtol=2e-2, atol=2e-2)
    assert torch.equal(clone(x), before)


@pytest.mark.parametrize("bits", [4, 2, 1])
def test_models_in_bfloat16_and_inference_mode_are_served(bits: int) -> None:
    with torch.inference_mode():
        for layer, x in ((nn.Linear(64, 16), torch.randn(3, 64)), (nn.Conv2d(4, 6, 3), torch.randn(1, 4, 6, 6))):
            quantized = low_bit_layer(layer, "head", low_bit_config(weight_bits=bits))
            before = quantized(x)
            after = quantized.to(torch.bfloat16)(x.bfloat16())
            assert after.dtype == torch.bfloat16
            torch.testing.assert_close(after.float(), before, rtol=0.1, atol=0.1)


def test_rows_in_another_order_in_memory_are_multiplied_like_copies_of_them() -> None:
    small = Int4Linear.from_linear(nn.Linear(64, 48), 32, False)
    x = torch.randn(64, 3).T
    assert not x.is_contiguous() and torch.equal(small(x), small(x.contiguous()))


def test_a_multiplied_layer_scales_its_input() -> None:
    linear, factor = nn.Linear(64, 16), torch.rand(64) + 0.5
    scale, zero_point = choose_scales(linear.weight / factor, 32, True)
    levels = Int4Linear.from_linear(linear, 32).levels()
    layer = Int4Linear.from_levels(linear, 32, levels, scale, zero_point, factor)
    x = torch.randn(4, 64, requires_grad=True)
    torch.testing.assert_close(layer(x), F.linear(x, layer.dequantized_weight(), linear.bias), rtol=1e-5, atol=1e-5)
    assert layer.multiplied and "input_multiplier" in layer.state_dict()


@pytest.mark.parametrize(("width", "group_size", "symmetric"), CASES)
def test_an_embedding_answers_the_rows_of_its_table(width: int, group_size: int | None, symmetric: bool) -> None:
    table = nn.Embedding(20, width)
    layer = Int4Embedding.from_embedding(table, group_size, symmetric)
    ids = torch.randint(20, (3, 7))
    assert torch.equal(layer(ids), layer.dequantized_weight()[ids])
    torch.testing.assert_close(
        layer.dequantized_weight().double(), rounded(table.weight, group_size, symmetric), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"groups": 2, "dilation": 2}, {"padding": "same"}]
)
@pytest.mark.parametrize("group_size", [None, 8])
def test_convolutions_equal_those_on_rounded_weights(options: dict[str, Any], group_size: int | None) -> None:
    conv = nn.Conv2d(4, 6, 3, **options)
    x = torch.randn(2, 4, 9, 9)
    wanted = copy.deepcopy(conv).double()
    wanted.weight.data = rounded(conv.weight.flatten(1), group_size, True).reshape(conv.weight.shape)
    found = Int4Conv2d.from_conv(conv, group_size)(x)
    torch.testing.assert_close(found.double(), wanted(x.double()), rtol=1e-5, atol=1e-5)


def test_ternary_weights_are_those_of_the_paper() -> None:
    linear, conv = nn.Linear(37, 6), nn.Conv2d(4, 6, 3)
    for weight, layer in (
        (linear.weight, TernaryLinear.from_linear(linear)),
        (conv.weight, TernaryConv2d.from_conv(conv)),
    ):
        for row, found in zip(weight.detach().flatten(1), layer.dequantized_weight().flatten(1), strict=True):
            threshold = 0.7 * float(row.abs().mean())
            kept = [abs(float(value)) for value in row if abs(value) > threshold]
            scale = float(torch.tensor(sum(kept) / len(kept)).bfloat16())
            wanted = [0.0 if abs(v) <= threshold else scale if v > 0 else -scale for v in row.tolist()]
            torch.testing.assert_close(found, torch.tensor(wanted), rtol=5e-3, atol=0)
    assert TernaryLinear.from_linear(linear).weight.shape == (6, 10)


@pytest.mark.parametrize("rows", [1, 150])
def test_a_ternary_layer_multiplies_its_weight(rows: int) -> None:
    layer, x = TernaryLinear.from_linear(nn.Linear(64, 20)), torch.randn(rows, 64)
    wanted = F.linear(x, layer.dequantized_weight(), layer.bias)
    with torch.no_grad():
        assert (layer(x) - wanted).square().mean().sqrt() <= 6e-3 * wanted.square().mean().sqrt()


@pytest.mark.parametrize("bits", [4, 2, 1])
def test_models_of_every_width_are_rebuilt_from_their_specs(bits: int) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))

    quantized = model().eval()
    for name in ("0", "3"):
        set_layer(quantized, name, low_bit_layer(quantized.get_submodule(name), name, low_bit_config(weight_bits=bits)))
    specs, rebuilt = int8_specs(quantized), model().eval()
    swap_linears(rebuilt, specs)
    rebuilt.load_state_dict(quantized.state_dict())
    x = torch.randn(2, 3, 4, 4)
    assert int8_specs(rebuilt) == specs and len(specs) == 2
    with torch.no_grad():
        assert torch.equal(rebuilt(x), quantized(x))
    small = sum(t.numel() * t.element_size() for t in quantized.state_dict().values() if t.dtype == torch.uint8)
    assert small <= 32 * (3 * 9 * 8 + 128 * 5) * bits / 8 / 32 + 8


def test_a_tied_table_stays_one_tensor_and_drops_the_heads_multiplier() -> None:
    model = ToyLanguageModel()
    for name, algorithm in (("tokens", "rtn"), ("lm_head", "awq")):
        inputs = torch.randn(64, 32) * torch.logspace(-1, 1, 32)
        layer = low_bit_layer(model.get_submodule(name), name, low_bit_config(algorithm=algorithm), inputs)
        set_layer(model, name, layer)
    specs = int8_specs(model)
    assert specs["lm_head"]["multiplied"] is True
    rebuilt = ToyLanguageModel()
    swap_linears(rebuilt, {**specs, "lm_head": {**specs["lm_head"], "tied_to": "tokens"}})
    head, tokens = rebuilt.get_submodule("lm_head"), rebuilt.get_submodule("tokens")
    assert head.weight is tokens.weight and head.scale is tokens.scale
    assert int8_specs(rebuilt)["lm_head"] == {**specs["lm_head"], "multiplied": False, "tied_to": "tokens"}


@pytest.mark.parametrize("spec", [{"group_size": "8"}, {"symmetric": 1}, {"mode": "dynamic"}, {"multiplied": None}])
def test_a_spec_that_says_something_wrong_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="spec of layer 'lm_head' is wrong"):
        swap_linears(ToyLanguageModel(), {"lm_head": {"kind": "int4_linear", **spec}})


@pytest.mark.parametrize("layer", [Int4Linear.from_linear(nn.Linear(64, 16), 32, False)])
def test_export_and_compile_take_the_portable_way(layer: Int4Linear) -> None:
    x = torch.randn(3, 64)
    wanted = F.linear(x, layer.dequantized_weight(), layer.bias)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.testing.assert_close(program.module()(x), wanted, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "changes", "message"),
    [
        (nn.Linear(8, 4), {"weight_bits": 3}, "weight_bits 3"),
        (nn.Linear(8, 4), {"group_size": 0}, "at least 1"),
        (nn.Linear(8, 4), {"algorithm": "gptw"}, "did you mean 'gptq'"),
        (nn.Linear(8, 4), {"algorithm": "gptq"}, "gptq needs inputs of layer 'body.head'"),
        (nn.LSTM(8, 4), {}, "LSTM; there are Linear"),
        (nn.Embedding(8, 4), {"weight_bits": 1}, "an embedding table in binary"),
        (nn.Embedding(8, 4, max_norm=1.0), {}, "max_norm"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), {"weight_bits": 2}, "reflect"),
        (nn.Conv2d(4, 4, 2, padding="same"), {"weight_bits": 1}, "same on both sides"),
    ],
)
def test_what_has_no_form_is_named(layer: nn.Module, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantizationError, match=r"layer 'body\.head'") as caught:
        low_bit_layer(layer, "body.head", low_bit_config(**changes))
    assert message in str(caught.value)


@pytest.mark.parametrize("bits", [4, 2, 1])
def test_weights_and_inputs_that_are_not_finite_are_refused(bits: int) -> None:
    linear = nn.Linear(8, 4)
    with torch.no_grad():
        linear.weight[1, 2] = float("nan")
    with pytest.raises(QuantizationError, match="weight of layer 'head' is not finite"):
        low_bit_layer(linear, "head", low_bit_config(weight_bits=bits))
    inputs = torch.full((3, 8), float("inf"))
    with pytest.raises(QuantizationError, match="inputs of layer 'head' are not finite"):
        low_bit_layer(nn.Linear(8, 4), "head", low_bit_config(algorithm="awq"), inputs)


def test_what_can_be_done_has_no_obstacle() -> None:
    assert low_bit_obstacle(nn.Linear(7, 3), low_bit_config()) is None
    assert low_bit_obstacle(nn.Conv2d(3, 3, 3), low_bit_config(weight_bits=1)) is None
