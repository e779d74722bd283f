"""Roundings that look at the data: AdaRound, bias correction, SmoothQuant, each against its formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek import bundle
from deepseek.errors import ModelError
from deepseek.models.gpt import GPT, GPTConfig
from deepseek.nn.int8_linear import Int8Linear
from deepseek.nn.smoothed import Smoothed, apply
from deepseek.quantization import QuantConfig, quantize_model, quantize_with_report
from deepseek.quantization.adaround import InputProducts, round_weights, weight_rows
from deepseek.quantization.report import sqnr_db
from tests.toy_language_model import VOCABULARY, ToyLanguageModel


def correlated(rows: int, width: int) -> Tensor:
    """Inputs whose channels move together, as real ones do."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(width, width, generator=generator) * 0.2 + torch.ones(width, width) * 0.3
    return torch.randn(rows, width, generator=generator) @ mixing + 0.5


CONVS = [
    (nn.Conv1d(4, 6, 3, padding=2, dilation=2, stride=2), (3, 4, 11)),
    (nn.Conv2d(4, 6, (3, 2), padding=(1, 0), stride=(2, 1), groups=2), (3, 4, 7, 6)),
    (nn.Conv2d(4, 4, 3, padding="same", groups=4), (2, 4, 5, 5)),
    (nn.Conv3d(2, 4, 2, padding=1), (2, 2, 4, 3, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVS)
def test_products_of_a_convolution_give_its_squared_output(layer: Any, shape: tuple[int, ...]) -> None:
    """sum w G w^T over the rows is the mean of the squared outputs, whatever stride, groups and dilation."""
    products, x = InputProducts(layer), torch.randn(shape)
    with torch.no_grad():
        for part in x.split(1):
            products.hook(layer, (part,), {}, layer(part))
        y = layer(x) - layer.bias.reshape(-1, *[1] * (x.dim() - 2))
    mean = products.mean()
    assert mean is not None
    rows = weight_rows(layer).unflatten(0, (layer.groups, -1))
    power = ((rows @ mean) * rows).sum(2).flatten()
    torch.testing.assert_close(power, y.square().transpose(0, 1).flatten(1).mean(1), atol=1e-4, rtol=1e-4)


def test_learned_rounding_beats_the_nearest_where_channels_move_together() -> None:
    x, weight = correlated(512, 24), torch.randn(8, 24, generator=torch.Generator().manual_seed(2))
    step = weight.abs().amax(1, keepdim=True) / 7
    learned = round_weights(weight, step, (x.t() @ x / len(x)).unsqueeze(0), -7, 7)
    nearest = (weight / step).round()
    assert torch.equal(learned, learned.round()) and float(learned.abs().max()) <= 7
    assert float((learned - weight / step).abs().max()) < 1
    exact = x @ weight.t()
    gains = [sqnr_db(exact, x @ (integers * step).t()) for integers in (learned, nearest)]
    assert gains[0] > gains[1] + 3


def test_adaround_of_a_model_keeps_more_of_each_layers_output() -> None:
    model = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))
    data = [correlated(64, 24) for _ in range(3)]
    plain, nearest = quantize_with_report(model, QuantConfig(method="weight_only"))
    _, learned = quantize_with_report(model, QuantConfig(method="weight_only", algorithm="adaround"), data)
    _, measured = quantize_with_report(model, QuantConfig(method="weight_only", bias_correction=True), data)
    assert isinstance(plain[0], Int8Linear)  # type: ignore[index]  # a Sequential
    assert (learned.layers[0].output_sqnr_db or 0) > (measured.layers[0].output_sqnr_db or 0) - 1
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2))
    images = [torch.rand(2, 3, 8, 8)]
    rounded = quantize_model(conv, QuantConfig(method="static", algorithm="adaround"), images)
    with torch.no_grad():
        assert sqnr_db(conv(images[0]), rounded(images[0])) > 30


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_corrected_bias_is_the_mean_error_of_the_weights(kind: str) -> None:
    layer: Any = nn.Linear(12, 5) if kind == "linear" else nn.Conv2d(3, 5, 2)
    with torch.no_grad():
        layer.weight.view(-1)[0] = 6.0  # one scale for all: the others are rounded coarsely
    data = [torch.rand(40, 12) * 3 if kind == "linear" else torch.rand(9, 3, 6, 6) * 3 for _ in range(3)]
    config = QuantConfig(method="weight_only", granularity="per_tensor", bias_correction=True)
    corrected = quantize_model(nn.Sequential(layer), config, data).get_submodule("0")
    error = layer.weight.detach() - corrected.dequantized_weight()  # type: ignore[operator]  # a method
    x = torch.cat(data)
    moved = F.linear(x, error).mean(0) if kind == "linear" else F.conv2d(x, error).mean((0, 2, 3))
    torch.testing.assert_close(corrected.bias.detach() - layer.bias.detach(), moved, atol=5e-3, rtol=0.02)  # type: ignore[operator, union-attr]


def loud(model: nn.Module, channels: list[int]) -> nn.Module:
    """Make some channels of every norm far larger than the others, as trained transformers have them."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight[channels] *= 60
    return model.eval()


def test_smoothing_rescues_a_transformer_with_loud_channels_and_moves_into_its_norms() -> None:
    model = loud(ToyLanguageModel(), [1, 7])
    data = [{"input_ids": torch.randint(VOCABULARY, (4, 20))} for _ in range(3)]
    results = {}
    for algorithm in ("rtn", "smoothquant"):
        config = QuantConfig.model_validate({"method": "static", "algorithm": algorithm, "skip": ["lm_head", "tokens"]})
        quantized, report = quantize_with_report(model, config, data)
        with torch.no_grad():
            results[algorithm] = sqnr_db(model(**data[0]), quantized(**data[0]))
    assert results["smoothquant"] > results["rtn"] + 5
    norm = quantized.get_submodule("blocks.0.attention_norm")
    assert not torch.allclose(norm.weight, model.get_submodule("blocks.0.attention_norm").weight)  # type: ignore[arg-type]
    assert "blocks.0.qkv.layer" not in report.smoothed


class PostNorm(nn.Module):
    """A norm that a linear layer and a residual sum read, as in BERT: its factor can't move."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return x + self.up(x)


def test_where_the_norm_is_read_elsewhere_the_input_is_multiplied() -> None:
    model, data = loud(PostNorm(), [3]), [torch.randn(30, 16) for _ in range(2)]
    quantized, report = quantize_with_report(model, QuantConfig(algorithm="smoothquant"), data)
    assert report.smoothed == ("up.layer",)
    layer = quantized.get_submodule("up")
    assert isinstance(layer, Smoothed) and isinstance(layer.layer, Int8Linear) and layer.in_features == 16
    assert sqnr_db(model.up.weight, layer.weight) > 30  # type: ignore[arg-type, union-attr]
    with torch.no_grad():
        assert sqnr_db(model(data[0]), quantized(data[0])) > 30


def test_a_smoothed_model_survives_its_bundle(tmp_path: Path) -> None:
    model = loud(GPT(GPTConfig(vocab_size=64, max_length=16, num_layers=1, d_model=32, num_heads=2)), [3])
    data = [model.example_inputs(4)]  # type: ignore[operator]
    quantized, report = quantize_with_report(model, QuantConfig(algorithm="smoothquant"), data)
    assert report.smoothed
    bundle.save(quantized, tmp_path / "b")
    loaded = bundle.load(tmp_path / "b", device="cpu").model
    with torch.no_grad():
        assert torch.equal(loaded(**data[0]), quantized(**data[0]))
    with pytest.raises(ModelError, match="input of '0' can't be scaled"):
        apply(nn.Sequential(nn.Linear(3, 3)), {"0": 4})
