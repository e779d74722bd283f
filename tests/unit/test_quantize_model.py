"""`quantize_model`: the copy, its layers, its quality and its size, and what it says when it can't."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError, QuantizationError
from deepseek.nn.int8_conv import Int8Conv2d
from deepseek.nn.int8_embedding import Int8Embedding
from deepseek.nn.int8_linear import Int8Linear
from deepseek.quantization import QuantConfig, quantize_model, quantize_with_report
from deepseek.quantization.report import sqnr_db
from tests.toy_language_model import VOCABULARY, ToyLanguageModel

CALIBRATIONS = ["minmax", "percentile", "mse", "kl"]


def batches(count: int = 3) -> list[dict[str, Tensor]]:
    return [{"input_ids": torch.randint(VOCABULARY, (4, 20))} for _ in range(count)]


def quality(model: nn.Module, quantized: nn.Module) -> float:
    ids = batches(1)[0]["input_ids"]
    with torch.no_grad():
        return sqnr_db(model.eval()(ids), quantized(ids))


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("method", ["dynamic", "weight_only"])
def test_answers_stay_close_and_the_original_is_untouched(method: str, scheme: str) -> None:
    model = ToyLanguageModel().train()
    values = {"method": method} if method == "weight_only" else {"method": method, "quant_scheme": scheme}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantized = quantize_model(model, QuantConfig.model_validate(values))
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not quantized.training and not any(parameter.requires_grad for parameter in quantized.parameters())
    assert quality(model, quantized) > 30


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_static_ranges_from_real_batches_keep_the_answers(calibration: str, scheme: str) -> None:
    model = ToyLanguageModel()
    values = {"method": "static", "calibration": calibration, "quant_scheme": scheme}
    assert quality(model, quantize_model(model, QuantConfig.model_validate(values), batches())) > 25


def test_the_same_call_as_in_the_source_documents() -> None:
    config = QuantConfig(weight_bits=8, activation_bits=8, quant_scheme="symmetric")
    quantized = quantize_model(ToyLanguageModel(), config)
    assert isinstance(quantized.get_submodule("blocks.0.up"), Int8Linear)


def test_an_eight_bit_model_takes_a_quarter_of_the_bytes() -> None:
    model = ToyLanguageModel(d_model=128)
    _, report = quantize_with_report(model)
    assert report.bytes_before == sum(parameter.numel() for parameter in model.parameters()) * 4
    assert report.bytes_after < 0.28 * report.bytes_before
    _, half = quantize_with_report(model, QuantConfig(weight_bits=16))
    assert half.bytes_after == half.bytes_before // 2


def test_the_report_names_each_layer_with_its_loss() -> None:
    _, report = quantize_with_report(ToyLanguageModel(), QuantConfig(skip=["blocks.0.up"]))
    assert {layer.name for layer in report.layers} >= {"tokens", "positions", "lm_head", "blocks.1.up"}
    assert report.skipped == {"blocks.0.up": "skip: 'blocks.0.up'"}
    assert all(layer.output_sqnr_db is not None and 25 < layer.output_sqnr_db < 80 for layer in report.layers)
    assert all(30 < layer.weight_sqnr_db < 80 for layer in report.layers)
    assert report.worst(1)[0].output_sqnr_db == min(layer.output_sqnr_db or 0 for layer in report.layers)
    assert report.to_dict()["layers"][0]["name"] == "tokens"


def test_a_tied_head_without_int8_embeddings_stays_tied_in_floating_point() -> None:
    quantized, report = quantize_with_report(ToyLanguageModel(), QuantConfig(embeddings=False))
    head = quantized.get_submodule("lm_head")
    assert type(head) is nn.Linear and head.weight is quantized.get_submodule("tokens").weight
    assert "shares its weight with 'tokens'" in report.skipped["lm_head"]


def test_convolutions_and_linears_of_an_image_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    images = torch.rand(16, 3, 6, 6)
    labelled = [(images[i : i + 4], torch.zeros(4)) for i in range(0, 16, 4)]  # as a DataLoader gives them
    quantized = quantize_model(model, QuantConfig(method="static"), labelled)
    assert isinstance(quantized.get_submodule("0"), Int8Conv2d)
    with torch.no_grad():
        assert sqnr_db(model(images), quantized(images)) > 30


def test_torch_transformer_layers_work_with_their_fused_kernel_kept_away() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    quantized, report = quantize_with_report(model)
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        assert sqnr_db(model.eval()(x), quantized(x)) > 25
    assert "NonDynamicallyQuantizableLinear" in report.skipped["layers.0.self_attn.out_proj"]
    assert "MultiheadAttention has no int8 form" in report.skipped["layers.0.self_attn"]


def test_an_unlabelled_generator_serves_once_for_everything() -> None:
    model = ToyLanguageModel()
    quantized, report = quantize_with_report(model, QuantConfig(method="static"), (batch for batch in batches()))
    assert quality(model, quantized) > 25
    assert all(layer.output_sqnr_db is not None for layer in report.layers)


def test_batches_may_carry_labels_that_the_model_does_not_take() -> None:
    data = [{**batch, "labels": batch["input_ids"]} for batch in batches()]
    quantize_model(ToyLanguageModel(), QuantConfig(method="static"), data)
    with pytest.raises(QuantizationError, match="no input of the model"):
        quantize_model(ToyLanguageModel(), QuantConfig(method="static"), [{"labels": torch.zeros(1)}])


def test_made_up_calibration_data_is_said_aloud() -> None:
    with pytest.warns(UserWarning, match="no calibration data"):
        quantize_model(ToyLanguageModel(), QuantConfig(method="static"))


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda: quantize_model(nn.Linear(2, 2), QuantConfig(method="static")), QuantizationError, "calibration data"),
        (lambda: quantize_model(nn.Linear(2, 2), QuantConfig(method="static"), []), QuantizationError, "no batches"),
        (lambda: quantize_model(quantize_model(nn.Linear(2, 2))), QuantizationError, "quantized already"),
        (lambda: QuantConfig(weight_bits=3), ConfigError, "weight_bits is 3; wanted 8"),
        (lambda: QuantConfig(activation_bits=4), ConfigError, "wanted 8 or 16 or 32"),
        (lambda: QuantConfig(weight_bits=16, method="static"), ConfigError, "floats have no ranges"),
        (lambda: QuantConfig(method="static", activation_bits=32), ConfigError, "wanted weight_only"),
        (lambda: QuantConfig.model_validate({"quant_schema": "symmetric"}), ValueError, "quant_schema"),
    ],
)
def test_what_can_not_be_done_says_what_can(run: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run()


def test_nothing_to_quantize_is_a_warning_with_reasons() -> None:
    with pytest.warns(UserWarning, match="nothing was quantized.*skip"):
        quantize_model(nn.Sequential(nn.Linear(2, 2)), QuantConfig(skip=["*"]))
    with pytest.warns(UserWarning, match="no layer with a weight matrix"):
        quantize_model(nn.Sequential(nn.LayerNorm(2)))


def test_settings_without_effect_are_warnings() -> None:
    with pytest.warns(UserWarning, match="'lm_haed' matches no layer"):
        quantize_model(ToyLanguageModel(), QuantConfig(skip=["lm_haed"]))
    with pytest.warns(UserWarning, match="calibration_data has no effect"):
        quantize_model(ToyLanguageModel(), QuantConfig(), batches())
    for config, setting in (
        (QuantConfig(calibration="kl"), "calibration"),
        (QuantConfig(method="weight_only", quant_scheme="asymmetric"), "quant_scheme"),
        (QuantConfig(weight_bits=16, skip=["lm_head"]), "skip"),
    ):
        with pytest.warns(UserWarning, match=f"'{setting}' has no effect with"):
            quantize_model(ToyLanguageModel(), config)


class ReadsAWeight(nn.Module):
    """Multiplies by a layer's weight instead of calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.outer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(self.outer(x), self.inner.weight)

    def example_inputs(self, batch_size: int = 1) -> dict[str, Tensor]:
        return {"x": torch.randn(batch_size, 8)}


def test_a_model_that_reads_a_weight_itself_fails_at_once_with_the_way_out() -> None:
    with pytest.raises(QuantizationError, match="skip"):
        quantize_model(ReadsAWeight())
    quantize_model(ReadsAWeight(), QuantConfig(skip=["inner"]))


def test_a_layer_that_calibration_never_reached_stays_in_floating_point() -> None:
    data = [torch.randn(4, 8)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        quantized, report = quantize_with_report(UnusedLayer(), QuantConfig(method="static"), data)
    assert any("never reached idle" in str(warning.message) for warning in said)
    assert report.skipped == {"idle": "calibration never reached it"}
    assert isinstance(quantized.get_submodule("used"), Int8Linear)
    assert type(quantized.get_submodule("idle")) is nn.Linear


class UnusedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_embeddings_are_quantized_unless_told_otherwise() -> None:
    assert isinstance(quantize_model(ToyLanguageModel()).get_submodule("positions"), Int8Embedding)
    kept = quantize_model(ToyLanguageModel(), QuantConfig(embeddings=False)).get_submodule("positions")
    assert type(kept) is nn.Embedding
