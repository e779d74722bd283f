"""From training to int8: every template, its folded norms and its bundle; and what can't be converted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deepseek import bundle
from deepseek.errors import QuantizationError
from deepseek.models import build
from deepseek.nn.fake_quant.layers import prepared_layers
from deepseek.nn.fold_norm import FoldedNorm
from deepseek.nn.int4_layers import Int4Conv2d, Int4Embedding
from deepseek.nn.int4_linear import Int4Linear
from deepseek.nn.int8_linear import Int8Linear
from deepseek.nn.int8_swap import int8_specs
from deepseek.quantization import QuantConfig
from deepseek.quantization.qat import convert_qat, prepare_qat
from deepseek.quantization.report import sqnr_db
from tests.qat_levels import assert_same_layers

TOYS = sorted((Path(__file__).parent.parent / "toys").glob("*.yaml"))


def lived(model: nn.Module) -> nn.Module:
    """Give batch norms statistics, factors of both signs and shifts, as if trained; other zeros a value."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            with torch.no_grad():
                module.weight[::3].neg_()
    return model.eval()


def outputs(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        leaves = tree_leaves(model(**inputs))
    return [leaf.float() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


@pytest.mark.filterwarnings("ignore:calibration never reached")
@pytest.mark.parametrize("toy", TOYS, ids=lambda path: path.stem)
def test_the_int8_form_of_a_template_rounds_as_training_did_and_survives_its_bundle(toy: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = lived(build(toy))
    inputs = model.example_inputs(2)  # type: ignore[operator]
    scheme = ("symmetric", "asymmetric")[len(toy.stem) % 2]
    config = QuantConfig.model_validate({"method": "qat", "quant_scheme": scheme})
    prepared = prepare_qat(model, config, calibration_data=[inputs], freeze_norms_after=2)
    with torch.no_grad():  # as training leaves them: not where calibration put them
        for layer in prepared_layers(prepared).values():
            layer.weight_quantizer.log_step.add_(0.01)
    converted = convert_qat(prepared)
    assert_same_layers(prepared, converted, inputs)
    exact, trained, stored = (outputs(net, inputs) for net in (model, prepared, converted))
    for one, mine, theirs in zip(exact, trained, stored, strict=True):  # a value at an edge may fall to either side
        assert sqnr_db(mine, theirs) > min(30, sqnr_db(one, mine))
    bundle.save(converted, tmp_path / "bundle")
    loaded = bundle.load(tmp_path / "bundle", device="cpu")
    loaded.verify()
    assert int8_specs(loaded.model) == int8_specs(converted)
    for mine, theirs in zip(outputs(converted, inputs), outputs(loaded.model, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_norms_are_folded_with_either_sign_and_a_factor_of_zero() -> None:
    model = lived(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
    )
    with torch.no_grad():
        model[1].weight[1] = 0  # type: ignore[union-attr, operator]
    x = torch.randn(4, 3, 9, 9)
    prepared = prepare_qat(model, calibration_data=[x])
    converted = convert_qat(prepared)
    assert isinstance(converted.get_submodule("1"), FoldedNorm) and isinstance(converted.get_submodule("4"), FoldedNorm)
    with torch.no_grad():
        torch.testing.assert_close(prepared(x), converted(x), rtol=1e-4, atol=1e-4)
        assert sqnr_db(model(x), converted(x)) > 30
        layer = converted.get_submodule("0")
        folded = torch.nn.utils.fuse_conv_bn_eval(model[0], model[1])  # type: ignore[arg-type, type-var]
        assert sqnr_db(folded.weight, layer.dequantized_weight()) > 35  # type: ignore[operator]
        torch.testing.assert_close(layer.get_buffer("bias"), folded.bias.data, rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("bits", [8, 4])
def test_a_layer_in_two_places_and_shared_tables_stay_one(bits: int) -> None:
    from tests.toy_language_model import VOCABULARY, ToyLanguageModel

    model, ids = ToyLanguageModel(), torch.randint(VOCABULARY, (4, 20))
    prepared = prepare_qat(model, QuantConfig(weight_bits=bits, method="qat"), calibration_data=[{"input_ids": ids}])
    tokens, head = prepared.get_submodule("tokens"), prepared.get_submodule("lm_head")
    assert head.weight is tokens.weight and head.weight_quantizer is tokens.weight_quantizer
    converted = convert_qat(prepared)
    assert converted.get_submodule("lm_head").weight is converted.get_submodule("tokens").weight
    highest = 2 ** (bits - 1) - 1
    found = [part.weight for part in converted.modules() if isinstance(part, Int8Linear)]
    assert max(int(weight.abs().max()) for weight in found) == highest
    with torch.no_grad():
        torch.testing.assert_close(prepared.eval()(ids), converted(ids), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("toy", ["resnet", "llama", "gpt", "mlp-batch-norm"])
def test_float_activations_leave_four_bits_four_bits(toy: str, tmp_path: Path) -> None:
    model = lived(build(TOYS[0].parent / f"{toy}.yaml"))
    inputs = model.example_inputs(2)  # type: ignore[operator]
    config = QuantConfig(method="qat", weight_bits=4, activation_bits=32)
    prepared = prepare_qat(model, config, calibration_data=[inputs])
    converted = convert_qat(prepared)
    for mine, theirs in zip(outputs(prepared.eval(), inputs), outputs(converted, inputs), strict=True):
        assert sqnr_db(mine, theirs) > 30  # torch's 4-bit kernel rounds activations to bf16
    packed = [part for part in converted.modules() if isinstance(part, Int4Linear | Int4Embedding | Int4Conv2d)]
    for part in packed:
        assert part.weight.dtype == torch.uint8 and part.dequantized_weight().isfinite().all()
    assert packed or toy == "mlp-batch-norm"
    bundle.save(converted, tmp_path / "bundle")
    loaded = bundle.load(tmp_path / "bundle", device="cpu").model
    for mine, theirs in zip(outputs(converted, inputs), outputs(loaded, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_what_is_not_prepared_or_not_finite_is_named() -> None:
    with pytest.raises(QuantizationError, match="not prepared"):
        convert_qat(nn.Linear(2, 2))
    prepared = prepare_qat(nn.Sequential(nn.Linear(4, 2)), calibration_data=[torch.randn(3, 4)])
    with torch.no_grad():
        prepared.get_submodule("0").get_parameter("weight_quantizer.log_step").fill_(torch.nan)
    with pytest.raises(QuantizationError, match="layer '0' learned numbers that are not finite"):
        convert_qat(prepared)
