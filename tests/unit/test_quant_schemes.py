"""The schemes of a config on one model and on every template: scales, mixed settings, what falls back and why."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deepseek.errors import ConfigError, ModelError, QuantizationError
from deepseek.models import build
from deepseek.nn.int8_embedding import Int8Embedding
from deepseek.nn.int8_linear import Int8Linear
from deepseek.quantization import QuantConfig, quantize_model, quantize_with_report
from deepseek.quantization.report import ratio_db, sqnr_db
from tests.toy_language_model import ToyLanguageModel

TOYS = {path.stem: path for path in sorted((Path(__file__).parent.parent / "toys").glob("*.yaml"))}
DEEP_AND_NARROW = {"mobilenet_v2"}  # 52 layers of 8 channels with random weights: every rounding is amplified


def answers(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        found = model(**inputs)
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


@pytest.mark.parametrize("toy", TOYS)
def test_every_template_keeps_its_answers_in_int8(toy: str) -> None:
    torch.manual_seed(0)
    model = build(TOYS[toy]).eval()
    inputs = model.example_inputs(4)  # type: ignore[operator]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    exact = answers(model, inputs)
    for config in (QuantConfig(method="static", calibration="best"), QuantConfig()):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="calibration never reached heads")  # UNet++ in eval
            data = [inputs] if config.needs_data else None
            quantized, report = quantize_with_report(model, config, data)
        assert report.layers
        ratios = [
            ratio_db(float(one.double().square().sum()), float((one - two).double().square().sum()))
            for one, two in zip(exact, answers(quantized, inputs), strict=True)
        ]
        assert min(ratios) > (8 if toy in DEEP_AND_NARROW else 20), (config.describe(), ratios, report.worst(3))


def test_one_scale_a_tensor_a_channel_or_a_group() -> None:
    linear = nn.Linear(40, 6)
    with torch.no_grad():
        linear.weight[:, 30:] *= 20
    found = {}
    for granularity in ("per_tensor", "per_channel", "per_group"):
        values = {"method": "weight_only", "granularity": granularity}
        values |= {"group_size": 16} if granularity == "per_group" else {}
        layer = quantize_model(nn.Sequential(linear), QuantConfig.model_validate(values)).get_submodule("0")
        assert isinstance(layer, Int8Linear)
        found[granularity] = sqnr_db(linear.weight[:, :16], layer.dequantized_weight()[:, :16])
        if granularity == "per_tensor":
            assert float(layer.scale.std()) == 0 and layer.scale.shape == (6,)
        if granularity == "per_group":
            assert layer.scale.shape == (6, 3)
            for group in range(3):
                part = linear.weight.detach()[:, 16 * group : 16 * group + 16]
                torch.testing.assert_close(layer.scale[:, group], part.abs().amax(1) / 127)
            x = torch.randn(50, 40)
            torch.testing.assert_close(layer(x), x @ layer.dequantized_weight().t() + linear.bias, atol=0.3, rtol=0.02)
    assert found["per_group"] > found["per_channel"] + 10 and found["per_channel"] > found["per_tensor"]


def test_layers_may_have_settings_of_their_own_and_the_later_wins() -> None:
    model = ToyLanguageModel()
    config = QuantConfig.model_validate(
        {
            "layers": {
                "blocks.*": {"method": "weight_only"},
                "blocks.1.*": {"method": "dynamic", "quant_scheme": "asymmetric"},
                "blocks.0.up": {"weight_bits": 4, "group_size": 16},
                "blocks.0.down": {"weight_bits": 16},
            }
        }
    )
    quantized, report = quantize_with_report(model, config)
    modes = {layer.name: (layer.weight_bits, layer.mode) for layer in report.layers}
    assert modes["blocks.0.qkv"] == (8, "weight_only") and modes["blocks.1.qkv"] == (8, "dynamic")
    assert modes["blocks.0.up"] == (4, "weight_only")
    assert report.skipped == {"blocks.0.down": "weight_bits: 16"}
    layer = quantized.get_submodule("blocks.1.qkv")
    assert isinstance(layer, Int8Linear) and not layer.symmetric
    assert type(quantized.get_submodule("blocks.0.down")) is nn.Linear
    with pytest.warns(UserWarning, match=r"'block\.\*' matches no layer"):
        quantize_model(model, QuantConfig.model_validate({"layers": {"block.*": {"weight_bits": 4}}}))


def test_a_shared_table_takes_one_form() -> None:
    quantized, report = quantize_with_report(ToyLanguageModel(), QuantConfig(weight_bits=2))
    bits = {layer.name: layer.weight_bits for layer in report.layers}
    assert bits["tokens"] == bits["lm_head"] == 8 and bits["blocks.0.up"] == 2
    assert quantized.get_submodule("tokens").weight is quantized.get_submodule("lm_head").weight
    assert isinstance(quantized.get_submodule("tokens"), Int8Embedding)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight_bits": 3}, "weight_bits is 3; wanted 8"),
        ({"weight_bits": 4, "method": "static"}, "wanted weight_only or qat"),
        ({"weight_bits": 4, "activation_bits": 8}, "wanted 16 or 32"),
        ({"weight_bits": 8, "algorithm": "gptq"}, "algorithm is gptq with weight_bits 8; it is for 4"),
        ({"method": "weight_only", "algorithm": "smoothquant"}, "smoothquant with float activations"),
        ({"granularity": "per_group"}, "per_group with dynamic"),
        ({"weight_bits": 16, "layers": {"a": {"weight_bits": 8}}}, "layers are set with weight_bits 16"),
        ({"layers": {"a": {"weight_bits": 5}}}, "weight_bits is 5"),
        ({"layers": {"a": {"weight_bit": 4}}}, "weight_bit"),
        ({"group_size": 1}, "group_size"),
    ],
)
def test_settings_that_make_no_sense_say_what_does(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantConfig(**values)


def test_a_config_survives_yaml_whole() -> None:
    config = QuantConfig.model_validate({"weight_bits": 4, "layers": {"head": {"weight_bits": 8}}, "skip": ["a.*"]})
    assert config.granularity == "per_group" and QuantConfig(**config.to_dict()).to_dict() == config.to_dict()
    assert config.for_layer("head").granularity == "per_channel" and config.for_layer("head").mode == "dynamic"


def test_weights_that_are_not_finite_are_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    with pytest.raises(QuantizationError, match="weight of layer '1' is not finite"):
        quantize_model(model)


def test_groups_belong_to_weight_only_layers() -> None:
    with pytest.raises(ModelError, match="groups are for weight_only"):
        Int8Linear(4, 4, group_size=2)


def test_both_kinds_of_16_bit_floats_halve_the_model_and_float16_keeps_three_bits_more() -> None:
    model = build({"name": "ResNet", "block": "basic", "depths": [1, 1], "hidden_sizes": [8, 16], "image_size": 32})
    pixels = model.example_inputs(batch_size=2)["pixel_values"]
    exact = model.eval()(pixels)
    ratios = []
    for half, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        small, report = quantize_with_report(model, QuantConfig.model_validate({"weight_bits": 16, "half": half}))
        assert {p.dtype for p in small.parameters()} == {dtype}
        assert report.bytes_after < 0.52 * report.bytes_before
        ratios.append(sqnr_db(exact, small(pixels.to(dtype)).float()))
    assert ratios[0] > 30 and ratios[1] > ratios[0] + 12  # three bits are 18 dB
