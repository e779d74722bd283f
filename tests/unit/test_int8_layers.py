"""Int8 embeddings and convolutions, and models rebuilt from the plain values that describe them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepseek.errors import ModelError
from deepseek.nn.int8_conv import INT8_CONVS, Int8Conv2d
from deepseek.nn.int8_embedding import Int8Embedding
from deepseek.nn.int8_linear import Int8Linear
from deepseek.nn.int8_swap import int8_specs, swap_linears
from deepseek.quantization import QuantConfig, quantize_model
from tests.toy_language_model import ToyLanguageModel


def test_an_embedding_row_is_off_by_at_most_half_a_step() -> None:
    table = nn.Embedding(50, 16)
    layer = Int8Embedding.from_embedding(table)
    ids = torch.randint(50, (3, 7))
    error = (layer(ids) - table(ids)).detach().abs()
    step = table.weight.detach().abs().amax(1)[ids] / 127
    assert layer(ids).shape == (3, 7, 16)
    assert bool((error <= step.unsqueeze(-1) * 0.501).all())
    assert torch.equal(layer(ids), layer.dequantized_weight()[ids])


@pytest.mark.parametrize("mode", ["dynamic", "static", "weight_only"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_convolution_equals_the_one_on_dequantized_values(mode: str, symmetric: bool) -> None:
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    layer = Int8Conv2d.from_conv(conv, mode, symmetric)  # type: ignore[arg-type]  # parametrized text
    x = torch.randn(3, 4, 9, 9)
    values = x.double()
    if mode == "static":
        layer.set_input_range(0.03, 0 if symmetric else -5)
        shift = 0 if symmetric else -5
        values = ((torch.round(values / 0.03) + shift).clamp(-128, 127) - shift) * 0.03
    elif mode == "dynamic":
        low, high = values.amin((1, 2, 3), keepdim=True), values.amax((1, 2, 3), keepdim=True)
        scale = values.abs().amax((1, 2, 3), keepdim=True) / 127 if symmetric else (high - low) / 255
        shift = torch.zeros_like(scale) if symmetric else torch.round(-128 - low / scale)
        values = ((torch.round(values / scale) + shift).clamp(-128, 127) - shift) * scale
    weight = conv.weight.detach().double()
    steps = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    assert conv.bias is not None
    wanted = F.conv2d(values, torch.round(weight / steps) * steps, conv.bias.detach().double(), 2, 1, 1, 2)
    torch.testing.assert_close(layer(x).double(), wanted, rtol=1e-4, atol=2e-2)
    assert (layer(x).double() - wanted).square().mean() < 1e-7
    assert layer(x.bfloat16()).dtype == torch.bfloat16


CONVS: list[tuple[Any, tuple[int, ...]]] = [
    (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 9)),
    (lambda: nn.Conv1d(4, 4, 5, padding="same", groups=4, bias=False), (3, 4, 9)),
    (lambda: nn.Conv3d(4, 6, (1, 3, 2), padding=(0, 1, 1), dilation=(1, 2, 1)), (2, 4, 3, 6, 5)),
    (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2, output_padding=1), (3, 4, 7)),
    (lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=2, padding=1, bias=False), (3, 4, 5, 5)),
    (lambda: nn.ConvTranspose3d(4, 6, 2, stride=2, groups=2, dilation=2), (2, 4, 3, 3, 3)),
]


@pytest.mark.parametrize(("make", "shape"), CONVS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_convolution_equals_torchs_fake_quantization(make: Any, shape: tuple[int, ...], symmetric: bool) -> None:
    """The float layer on weights and inputs that torch's own operators rounded, channel by channel."""
    conv = make()
    layer = INT8_CONVS[type(conv)].from_conv(conv, "static", symmetric)
    zero_point = 0 if symmetric else -11
    layer.set_input_range(0.02, zero_point)
    rounded, x = copy.deepcopy(conv), torch.randn(shape)
    transposed = isinstance(conv, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    for group in range(conv.groups):  # each group of a transposed convolution has output channels of its own
        rows = slice(group * conv.in_channels // conv.groups, (group + 1) * conv.in_channels // conv.groups)
        part = rounded.weight.data[rows] if transposed else rounded.weight.data
        axis = 1 if transposed else 0
        scale = part.abs().amax([dim for dim in range(part.dim()) if dim != axis]) / 127
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        part.copy_(torch.fake_quantize_per_channel_affine(part, scale, zeros, axis, -127, 127))
        if not transposed:
            break
    wanted = rounded(torch.fake_quantize_per_tensor_affine(x, 0.02, zero_point, -128, 127))
    torch.testing.assert_close(layer(x), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layer.dequantized_weight(), rounded.weight.detach(), atol=1e-6, rtol=1e-5)
    model, rebuilt = nn.Sequential(layer), nn.Sequential(make())
    swap_linears(rebuilt, int8_specs(model))
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt(x), layer(x)) and int8_specs(rebuilt) == int8_specs(model)


def test_a_grouped_layer_is_rebuilt_with_its_groups() -> None:
    config = QuantConfig(method="weight_only", granularity="per_group", group_size=8)
    model, rebuilt = quantize_model(nn.Sequential(nn.Linear(20, 4)), config), nn.Sequential(nn.Linear(20, 4))
    swap_linears(rebuilt, int8_specs(model))
    rebuilt.load_state_dict(model.state_dict())
    x = torch.randn(3, 20)
    with torch.no_grad():
        assert torch.equal(rebuilt(x), model(x))


def test_a_reflecting_convolution_is_refused() -> None:
    with pytest.raises(ModelError, match="reflect"):
        Int8Conv2d(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"))


@pytest.mark.parametrize(
    "config",
    [
        QuantConfig(),
        QuantConfig(quant_scheme="asymmetric"),
        QuantConfig(method="weight_only"),
        QuantConfig(method="static", quant_scheme="asymmetric"),
        QuantConfig(skip=["blocks.1.*"]),
    ],
)
def test_a_model_rebuilt_from_its_specs_and_state_answers_the_same(config: QuantConfig) -> None:
    data = [ToyLanguageModel().example_inputs(2)]
    quantized = quantize_model(ToyLanguageModel(), config, data if config.method == "static" else None)
    rebuilt = ToyLanguageModel().eval()
    specs = int8_specs(quantized)
    swap_linears(rebuilt, specs)
    rebuilt.load_state_dict(quantized.state_dict())
    assert int8_specs(rebuilt) == specs
    with torch.no_grad():
        assert torch.equal(rebuilt(**data[0]), quantized(**data[0]))


def test_a_tied_table_is_one_tensor_before_and_after() -> None:
    quantized = quantize_model(ToyLanguageModel())
    assert int8_specs(quantized)["lm_head"]["tied_to"] == "tokens"
    rebuilt = ToyLanguageModel()
    swap_linears(rebuilt, int8_specs(quantized))
    for model in (quantized, rebuilt):
        head, table = model.get_submodule("lm_head"), model.get_submodule("tokens")
        assert head.weight is table.weight
        assert head.scale is table.scale


def test_one_module_under_two_names_stays_one() -> None:
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    rebuilt_shared = nn.Linear(8, 8)
    rebuilt = nn.Sequential(rebuilt_shared, nn.ReLU(), rebuilt_shared)
    quantized = quantize_model(model)
    swap_linears(rebuilt, int8_specs(quantized))
    assert isinstance(quantized[0], Int8Linear) and quantized[0] is quantized[2]  # type: ignore[index]  # Sequential
    assert isinstance(rebuilt[0], Int8Linear) and rebuilt[0] is rebuilt[2]


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ({"lm_haed": {"kind": "linear"}}, "did you mean 'lm_head'"),
        ({"lm_head": {"kind": "conv2d"}}, "can't become quantized 'conv2d'"),
        ({"norm": {"kind": "linear"}}, "can't become quantized"),
        ({"lm_head": {"kind": "linear", "mode": "int3"}}, "unknown int8 mode"),
        ({"lm_head": {"kind": "linear", "bits": 3}}, "spec of layer 'lm_head' is wrong"),
        ({"lm_head": {"kind": "linear", "symmetric": "yes"}}, "spec of layer 'lm_head' is wrong"),
        ({"lm_head": {"kind": "linear", "tied_to": "norm"}}, "can't share"),
        ({"lm_head": {"kind": "linear", "tied_to": "tokenz"}}, "did you mean 'tokens'"),
    ],
)
def test_a_spec_that_does_not_fit_is_named(specs: dict[str, dict[str, str | bool]], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        swap_linears(ToyLanguageModel(), specs)
