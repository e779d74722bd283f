"""The convolutional networks and their blocks. That their answers are right: tests/parity/test_convnets.py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deepseek.errors import ConfigError, ModelError
from deepseek.models.convnext import ConvNeXt, ConvNeXtBlock, ConvNeXtConfig
from deepseek.models.efficientnet import EfficientNet, EfficientNetConfig
from deepseek.models.factory import build, model_config
from deepseek.models.mobilenet_v2 import MobileNetV2, MobileNetV2Config
from deepseek.models.mobilenet_v3 import MobileNetV3, MobileNetV3Config
from deepseek.models.resnet import ResNet, ResNetConfig
from deepseek.nn.channel_rounding import round_channels
from deepseek.nn.channels_first_norm import ChannelsFirstLayerNorm
from deepseek.nn.conv_norm import ConvNorm, ConvStyle
from deepseek.nn.recompute_norm import recomputed_with_norms
from deepseek.nn.same_padding import pad_same
from deepseek.nn.squeeze_excite import SqueezeExcite
from deepseek.nn.stochastic_depth import StochasticDepth, linear_rates
from deepseek.registry import MODELS, resolve

TOYS = Path(__file__).parents[1] / "toys"
NAMES = ["resnet", "mobilenet_v2", "mobilenet_v3", "efficientnet", "convnext"]

PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "mobilenet-v2": 3_504_872,
    "mobilenet-v3-large": 5_483_032,
    "mobilenet-v3-small": 2_542_856,
    "efficientnet-b0": 5_288_548,
    "efficientnet-b1": 7_794_184,
    "efficientnet-b2": 9_109_994,
    "efficientnet-b3": 12_233_232,
    "efficientnet-b4": 19_341_616,
    "efficientnet-b5": 30_389_784,
    "efficientnet-b6": 43_040_704,
    "efficientnet-b7": 66_347_960,
    "convnext-tiny": 28_589_128,
    "convnext-small": 50_223_688,
    "convnext-base": 88_591_464,
}
"""As torchvision's model pages list them."""

MULTIPLY_ADDS = {
    "resnet18": 1.8e9,  # He et al., table 1
    "resnet34": 3.6e9,
    "mobilenet-v2": 300e6,  # Sandler et al., table 4
    "mobilenet-v3-large": 219e6,  # Howard et al., table 3
    "mobilenet-v3-small": 56e6,
    "efficientnet-b0": 0.39e9,  # Tan and Le, table 2
    "efficientnet-b4": 4.2e9,
    "efficientnet-b7": 37e9,
    "convnext-tiny": 4.5e9,  # Liu et al., table 1
    "convnext-base": 15.4e9,
}


def toy(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    template, config = model_config(TOYS / f"{name}.yaml")
    model_class: Any = resolve(MODELS, template, "model")
    return model_class(config.replace(**changes))


def on_meta(size: str) -> Any:
    with torch.device("meta"):
        return build(size)


@pytest.mark.parametrize("size", PARAMETERS)
def test_the_zoo_has_the_published_parameter_counts(size: str) -> None:
    assert sum(p.numel() for p in on_meta(size).parameters()) == PARAMETERS[size]


@pytest.mark.parametrize("size", MULTIPLY_ADDS)
def test_the_zoo_has_the_papers_multiply_adds(size: str) -> None:
    model, counter = on_meta(size).eval(), FlopCounterMode(display=False)
    with counter, torch.no_grad():
        side = model.config.image_size
        assert model(torch.empty(1, 3, side, side, device="meta")).shape == (1, 1000)
    assert counter.get_total_flops() / 2 == pytest.approx(MULTIPLY_ADDS[size], rel=0.06)


def test_the_defaults_are_a_size_of_the_zoo() -> None:
    for size, config in (
        ("resnet50", ResNetConfig()),
        ("mobilenet-v2", MobileNetV2Config()),
        ("mobilenet-v3-large", MobileNetV3Config()),
        ("efficientnet-b0", EfficientNetConfig()),
        ("convnext-tiny", ConvNeXtConfig(drop_path=0.1)),
    ):
        assert model_config(size)[1] == config


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 47), (40, 97)])
def test_any_image_size_gives_logits_and_a_feature_map(name: str, height: int, width: int) -> None:
    model = toy(name).eval()
    pixel_values = torch.randn(1, 3, height, width)
    stride = model.config.output_stride if name == "mobilenet_v2" else model.config.stride
    features = model.forward_features(pixel_values)
    rounded = math.floor if name == "convnext" else math.ceil
    assert features.shape[2:] == (rounded(height / stride), rounded(width / stride))
    logits = model(pixel_values)
    assert logits.shape == (1, 5) and bool(logits.isfinite().all())


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_does_not_depend_on_the_other_images(name: str) -> None:
    model, pixel_values = toy(name).eval(), torch.randn(3, 3, 40, 40)
    with torch.no_grad():
        together, alone = model(pixel_values), torch.cat([model(image[None]) for image in pixel_values])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("pixel_values", "named"),
    [
        (torch.zeros(3, 32, 32), r"found:  \(3, 32, 32\)"),
        (torch.zeros(1, 1, 32, 32), r"wanted: \(batch, 3, height, width\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "torch.uint8"),
        (torch.zeros(1, 3, 0, 32), "too small"),
    ],
)
def test_wrong_images_are_refused_by_name(name: str, pixel_values: torch.Tensor, named: str) -> None:
    with pytest.raises(ModelError, match=f"(?s)pixel_values.*{named}"):
        toy(name)(pixel_values)


def test_images_smaller_than_the_downsampling_are_refused() -> None:
    with pytest.raises(ModelError, match="at least 8 x 8"):
        toy("convnext")(torch.zeros(1, 3, 7, 20))
    fixed = toy("efficientnet", symmetric_blocks=[])
    assert fixed(torch.randn(2, 3, 4, 4)).shape == (2, 5)
    with pytest.raises(ModelError, match="at least 4 x 4"):
        fixed(torch.randn(2, 3, 4, 3))


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2", "mobilenet_v3", "efficientnet"])
def test_batch_norm_can_not_train_on_one_value(name: str) -> None:
    model = toy(name)
    assert model.eval()(torch.randn(1, 3, 2, 2)).shape == (1, 5)
    with pytest.raises(ModelError, match="two values"):
        model.train()(torch.randn(1, 3, 2, 2))
    assert model(torch.randn(2, 3, 2, 2)).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_changes_neither_gradients_nor_statistics(name: str) -> None:
    found, extra = [], {"drop_connect": 0.3} if name == "efficientnet" else {}
    pixel_values = torch.randn(3, 3, 40, 40)
    for switch in (False, True):
        model = toy(name, **extra).train()
        model.config.gradient_checkpointing = switch
        torch.manual_seed(1)
        model(pixel_values).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        found.append((torch.cat([p.grad.flatten() for p in model.parameters()]), dict(model.named_buffers())))
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[1][1], found[0][1])


def test_checkpointing_keeps_less_of_a_block() -> None:
    style = ConvStyle()
    block = nn.Sequential(*(ConvNorm(4, 4, 3, style=style) for _ in range(4)))
    kept = []
    for switch in (False, True):
        saved: list[torch.Size] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, saved=saved: saved.append(tensor.shape) or tensor, lambda tensor: tensor
        )
        with hooks:
            out = recomputed_with_norms(switch, block, torch.randn(2, 4, 8, 8, requires_grad=True))
        kept.append(len(saved))
        out.sum().backward()
    assert kept[1] < kept[0] / 4


# ---- blocks


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_makes_every_pixel_count_and_rounds_up(kernel_size: int, stride: int, dilation: int) -> None:
    window = torch.ones(1, 1, kernel_size, kernel_size)
    for size in range(1, 12):
        x = pad_same(torch.ones(1, 1, size, size + 3), kernel_size, stride, dilation)
        out = F.conv2d(x, window, stride=stride, dilation=dilation)
        assert out.shape[2:] == (math.ceil(size / stride), math.ceil((size + 3) / stride))
        for line in (x.sum((0, 1, 3)), x.sum((0, 1, 2))):
            inside = line.nonzero().flatten().tolist()
            assert len(line) - 1 - inside[-1] - inside[0] in (0, 1)  # equal sides, or one more at the end
        assert x.sum() == size * (size + 3)


def test_fixed_padding_is_that_of_an_even_map() -> None:
    torch.manual_seed(0)
    by_size = ConvNorm(2, 3, 5, style=ConvStyle(padding="same"), stride=2).eval()
    fixed = ConvNorm(2, 3, 5, style=ConvStyle(padding="same_even"), stride=2).eval()
    fixed.load_state_dict(by_size.state_dict())
    even, odd = torch.randn(1, 2, 12, 12), torch.randn(1, 2, 13, 13)
    torch.testing.assert_close(fixed(even), by_size(even))
    assert fixed(odd).shape[2:] == (6, 6) and by_size(odd).shape[2:] == (7, 7)


@pytest.mark.parametrize(
    ("channels", "wanted"), [(32 * 0.75, 24), (16 * 0.35, 8), (24 * 0.35, 8), (32 * 0.35, 16), (320 * 1.4, 448), (3, 8)]
)
def test_channels_are_rounded_as_in_the_published_small_models(channels: float, wanted: int) -> None:
    assert round_channels(channels) == wanted


def test_squeeze_and_excite_scales_channels_by_a_gate() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 5, 4)
    for gate in ("sigmoid", "hardsigmoid"):
        layer = SqueezeExcite(6, 3, gate=gate)  # type: ignore[arg-type]
        scale = layer(x) / x
        torch.testing.assert_close(scale, scale[:, :, :1, :1].expand_as(scale), atol=1e-5, rtol=1e-4)
        down, up = layer.reduce.weight[:, :, 0, 0], layer.expand.weight[:, :, 0, 0]
        hidden = (x.mean((2, 3)) @ down.T + layer.reduce.bias).clamp(min=0) @ up.T + layer.expand.bias
        wanted = 1 / (1 + (-hidden).exp()) if gate == "sigmoid" else (hidden / 6 + 0.5).clamp(0, 1)
        torch.testing.assert_close(scale[:, :, 0, 0], wanted, atol=1e-5, rtol=1e-4)


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer, x = StochasticDepth(0.25), torch.ones(4000, 2, 3, 3)
    out = layer(x)
    values = out.flatten(1)
    assert (values == values[:, :1]).all() and sorted(set(values[:, 0].tolist())) == pytest.approx([0, 4 / 3])
    assert float(out.mean()) == pytest.approx(1, abs=0.03)
    assert layer.eval()(x) is x and StochasticDepth(0.0)(x) is x


def test_rates_rise_evenly() -> None:
    assert linear_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert linear_rates(0.4, 4, reach_end=False) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert linear_rates(0.5, 1) == [0]


def test_the_channels_first_norm_normalises_each_pixel() -> None:
    torch.manual_seed(0)
    layer, x = ChannelsFirstLayerNorm(7), torch.randn(2, 7, 3, 4) * 3 + 1
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    centred = x - x.mean(1, keepdim=True)
    wanted = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    wanted = wanted * layer.weight[:, None, None] + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), wanted)


# ---- templates


def test_a_bottleneck_halves_the_size_in_its_second_convolution_or_in_the_first() -> None:
    for first in (False, True):
        model = toy("resnet", downsample_in_first_conv=first)
        strides = [unit.conv.stride[0] for unit in model.stages[1][0].convs]
        assert strides == ([2, 1, 1] if first else [1, 2, 1])
    assert toy("resnet", first_stage_downsamples=True).config.stride == 16


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_dilation_sees_what_the_strides_it_replaces_see(output_stride: int) -> None:
    """The dilated network's map, every few pixels, is the full network's (where every map has an odd size)."""
    full, dilated = toy("mobilenet_v2").eval(), toy("mobilenet_v2", output_stride=output_stride).eval()
    dilated.load_state_dict(full.state_dict())
    pixel_values, step = torch.randn(1, 3, 129, 129), 32 // output_stride
    with torch.no_grad():
        coarse, fine = full.forward_features(pixel_values), dilated.forward_features(pixel_values)
    assert fine.shape[-1] == math.ceil(129 / output_stride)
    torch.testing.assert_close(fine[..., ::step, ::step], coarse, atol=1e-5, rtol=1e-5)


def test_a_narrow_mobilenet_keeps_its_last_layer_unless_told() -> None:
    assert MobileNetV2Config(width_multiplier=0.35).last_width == 1280
    assert MobileNetV2Config(width_multiplier=0.35, shrink_last_layer=True).last_width == 448
    assert MobileNetV2Config(width_multiplier=1.4).last_width == 1792


def test_residuals_are_where_the_papers_have_them() -> None:
    v2 = on_meta("mobilenet-v2")
    assert [block.drop is not None for block in v2.blocks] == [
        index in {1, 3, 4, 6, 7, 8, 10, 11, 13, 14} for index in range(16)
    ]
    v3 = on_meta("mobilenet-v3-small")
    assert [block.drop is not None for block in v3.blocks] == [index in {2, 4, 5, 7, 9, 10} for index in range(11)]
    b0 = on_meta("efficientnet-b0")
    assert sum(block.drop is not None for block in b0.blocks) == 16 - 7
    rates = [block.drop.rate for block in b0.blocks if block.drop is not None]
    assert rates == sorted(rates) and rates[-1] == pytest.approx(0.2 * 14 / 16)


def test_convnext_without_factors_has_no_such_weights() -> None:
    with_factor, without = toy("convnext"), toy("convnext", layer_scale=0.0)
    assert {n for n, _ in with_factor.named_parameters()} - {n for n, _ in without.named_parameters()} == {
        "stages.0.0.scale",
        "stages.1.0.scale",
        "stages.1.1.scale",
    }
    block = ConvNeXtBlock(4, 0.0, 0.0)
    assert block(torch.randn(1, 4, 5, 5)).shape == (1, 4, 5, 5)


def test_dropout_is_for_training_alone() -> None:
    pixel_values = torch.randn(2, 3, 40, 40)
    for name in ("mobilenet_v2", "mobilenet_v3", "efficientnet"):
        model = toy(name, dropout=0.9)
        with torch.no_grad():
            assert not torch.equal(model.train()(pixel_values), model(pixel_values))
            assert torch.equal(model.eval()(pixel_values), model(pixel_values))


@pytest.mark.parametrize("name", NAMES)
def test_start_weights_are_as_documented(name: str) -> None:
    model = toy(name)
    for part, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and name != "convnext" and module.weight.numel() > 1000:
            fan_out = math.prod(module.kernel_size) * module.out_channels / module.groups
            assert float(module.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_out), rel=0.15), part
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any(), part
    again = toy(name)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("config", "values", "nearest"),
    [
        (ResNetConfig, {"depths": [2, 2], "hidden_sizes": [8, 16, 32]}, r"depths \[2, 2, 2\]"),
        (ResNetConfig, {"depths": [1, 1], "hidden_sizes": [8, 18]}, r"hidden_sizes \[8, 16\]"),
        (ConvNeXtConfig, {"depths": [2, 2, 3, 1]} | {"hidden_sizes": [8, 16]}, r"depths \[2, 2\]"),
        (MobileNetV2Config, {"output_stride": 4}, "8, 16 or 32"),
        (MobileNetV3Config, {"blocks": []}, "blocks"),
        (EfficientNetConfig, {"pooling": "average"}, "'mean' or 'max'"),
    ],
)
def test_sizes_that_do_not_fit_are_answered_with_what_does(config: Any, values: dict[str, Any], nearest: str) -> None:
    with pytest.raises(ConfigError, match=nearest):
        config(**values)


def test_templates_are_what_the_registry_builds() -> None:
    for name, template in zip(NAMES, (ResNet, MobileNetV2, MobileNetV3, EfficientNet, ConvNeXt), strict=True):
        assert type(toy(name)) is template
