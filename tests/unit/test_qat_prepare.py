"""The prepared copy: what trains, what stays, how norms behave, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.errors import QuantizationError
from deepseek.nn.fake_quant.fake_quantize import fake_quantize
from deepseek.nn.fake_quant.layers import FakeQuantConv2d, FakeQuantLinear, WeightQuantizer, prepared_layers
from deepseek.nn.fake_quant.norms import FreezingBatchNorm
from deepseek.nn.int4_linear import Int4Linear
from deepseek.nn.int8_linear import Int8Linear
from deepseek.optim.build import OptimizerSettings, parameter_groups
from deepseek.quantization import QuantConfig, quantize_model
from deepseek.quantization.qat import convert_qat, prepare_qat

IMAGES = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(3))


def small_net() -> nn.Sequential:
    torch.manual_seed(5)
    conv, norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
    nn.init.uniform_(norm.weight, -1.5, 1.5)
    return nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 4))


def test_layers_that_read_one_tensor_share_its_quantizer() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.out = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.query(x) * self.key(x))  # type: ignore[no-any-return]

    x = torch.randn(9, 4)
    prepared = prepare_qat(Two(), calibration_data=[x])
    query, key, out = (prepared.get_submodule(name) for name in ("query", "key", "out"))
    assert query.input_quantizer is key.input_quantizer is not None and out.input_quantizer is not key.input_quantizer
    converted = convert_qat(prepared)
    assert torch.equal(converted.get_buffer("query.input_scale"), converted.get_buffer("key.input_scale"))
    with torch.no_grad():
        torch.testing.assert_close(prepared(x), converted(x), rtol=1e-4, atol=1e-5)


def test_the_original_stays_and_the_copy_trains_every_weight_and_step() -> None:
    model = small_net()
    before = copy.deepcopy(model.state_dict())
    prepared = prepare_qat(model, calibration_data=[IMAGES])
    assert prepared.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    F.cross_entropy(prepared(IMAGES), torch.arange(8) % 4).backward()
    for name, parameter in prepared.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name
        assert float(parameter.grad.abs().sum()) > 0, name
    assert {name for name, _ in model.named_parameters()} < {name for name, _ in prepared.named_parameters()}


def test_steps_are_not_decayed() -> None:
    prepared = prepare_qat(small_net(), QuantConfig(quant_scheme="asymmetric"), calibration_data=[IMAGES])
    groups = parameter_groups(prepared, OptimizerSettings(weight_decay=0.1))
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in prepared.named_parameters() if id(p) in decayed}
    assert names == {"0.weight", "4.weight"}


def test_a_wrong_start_is_mended_by_training_the_steps_alone() -> None:
    layer = nn.Linear(16, 8)
    x = torch.randn(64, 16)
    prepared = prepare_qat(layer_in(layer), calibration_data=[x])
    made = prepared.get_submodule("0")
    steps = [made.get_parameter("weight_quantizer.log_step"), made.get_parameter("input_quantizer.log_step")]
    with torch.no_grad():
        for step in steps:
            step.add_(1.5)
    optimizer, errors = torch.optim.Adam(steps, lr=0.02), []
    for _ in range(120):
        error = (prepared(x) - layer(x).detach()).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.25 * errors[0]


def layer_in(layer: nn.Module) -> nn.Module:
    return nn.Sequential(copy.deepcopy(layer))


def test_rounding_before_the_norm_is_rounding_the_folded_weight() -> None:
    """Jacob et al. round the weight after folding; with a step for each channel that is the same numbers."""
    prepared = prepare_qat(small_net(), calibration_data=[IMAGES]).eval()
    conv, norm = prepared.get_submodule("0"), prepared.get_submodule("1")
    assert isinstance(conv, FakeQuantConv2d) and isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
    nn.init.uniform_(norm.running_var, 0.3, 3.0)
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    assert bool((factor < 0).any()) and bool((factor > 0).any())
    folded = conv.weight * factor.reshape(-1, 1, 1, 1)
    rounded = fake_quantize(folded, conv.weight_quantizer.log_step.exp() * factor.abs(), None, (-127, 127))
    assert norm.running_mean is not None and conv.input_quantizer is not None
    wanted = F.conv2d(conv.input_quantizer(IMAGES), rounded, norm.bias - norm.running_mean * factor)
    torch.testing.assert_close(norm(conv(IMAGES)), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_norms_freeze_after_their_batches_and_go_on_learning(momentum: float | None) -> None:
    model = small_net()
    model[1].momentum = momentum
    prepared = prepare_qat(model, calibration_data=[IMAGES], freeze_norms_after=3).train()
    norm, plain = prepared.get_submodule("1"), copy.deepcopy(model[1]).train()
    assert isinstance(norm, FreezingBatchNorm)
    compiled = copy.deepcopy(norm)
    for number in range(5):
        x = torch.randn(4, 6, 5, 5) * 2 + 1
        found, other = norm(x), compiled._either(x)
        wanted = plain(x) if number < 3 else plain.eval()(x)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(other, wanted, rtol=1e-4, atol=1e-5)
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(norm.get_buffer(name), plain.get_buffer(name))
            torch.testing.assert_close(compiled.get_buffer(name), plain.get_buffer(name))
    norm(torch.randn(4, 6, 5, 5)).square().sum().backward()
    assert norm.weight.grad is not None and float(norm.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("activation_bits", [None, 16])
def test_single_layers_have_settings_of_their_own(bits: int, activation_bits: int | None) -> None:
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12))
    x = torch.randn(20, 12)
    config = QuantConfig.model_validate(
        {"weight_bits": bits, "activation_bits": activation_bits, "skip": ["2"], "layers": {"0": {"weight_bits": 8}}}
    )
    prepared = prepare_qat(model, config, calibration_data=[x])
    first, second = prepared.get_submodule("0"), prepared.get_submodule("1")
    assert isinstance(first, FakeQuantLinear) and isinstance(second, FakeQuantLinear)
    assert (first.weight_quantizer.bits, second.weight_quantizer.bits) == (8, bits)
    assert (second.input_quantizer is None) == (activation_bits == 16)
    assert type(prepared.get_submodule("2")) is nn.Linear
    levels, _ = second.weight_quantizer.integers(second.weight)
    assert len(levels.unique()) > 2 ** (bits - 2) and int(levels.abs().max()) <= 2 ** (bits - 1) - 1
    converted = convert_qat(prepared).get_submodule("1")
    if activation_bits == 16 and bits == 4:
        assert isinstance(converted, Int4Linear)
    else:
        assert isinstance(converted, Int8Linear)
        assert converted.mode == ("static" if activation_bits is None else "weight_only")


def test_layers_that_never_run_stay_as_they_are() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)  # type: ignore[no-any-return]

    with pytest.warns(UserWarning, match="never reached idle"):
        prepared = prepare_qat(Skips(), calibration_data=[torch.randn(3, 4)])
    assert list(prepared_layers(prepared)) == ["used"] and type(prepared.get_submodule("idle")) is nn.Linear


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while it traces
def test_the_model_compiles_whole() -> None:
    prepared = prepare_qat(
        small_net(), QuantConfig(quant_scheme="asymmetric"), calibration_data=[IMAGES], freeze_norms_after=1
    )
    twin = copy.deepcopy(prepared)
    compiled = torch.compile(prepared, backend="eager", fullgraph=True)
    for _ in range(2):
        mine, theirs = compiled(IMAGES), twin(IMAGES)
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
        mine.square().sum().backward()
        theirs.square().sum().backward()
    for name, parameter in prepared.named_parameters():
        torch.testing.assert_close(parameter.grad, twin.get_parameter(name).grad, rtol=2e-2, atol=2e-2, msg=name)


def broken(name: str) -> nn.Module:
    model = small_net()
    with torch.no_grad():
        model.get_parameter(name)[0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: prepare_qat(small_net(), calibration_data=[]), "no batches"),
        (lambda: prepare_qat(small_net(), calibration_data=[IMAGES * torch.nan]), "layer '0' is not finite"),
        (lambda: prepare_qat(small_net(), calibration_data=[IMAGES[:, :2]]), "does not fit the model at '0'"),
        (lambda: prepare_qat(broken("4.weight"), calibration_data=[IMAGES]), "weight '4.weight' is not finite"),
        (lambda: prepare_qat(nn.Sequential(nn.ReLU()), calibration_data=[IMAGES]), "nothing to train quantized"),
        (lambda: prepare_qat(quantize_model(small_net()), calibration_data=[IMAGES]), "quantized already"),
        (lambda: prepare_qat(prepare_qat(small_net(), calibration_data=[IMAGES])), "prepared .* already"),
        (lambda: prepare_qat(small_net()), "needs calibration data"),
        (lambda: prepare_qat(small_net(), QuantConfig(weight_bits=2), calibration_data=[IMAGES]), "layer '0' .* such"),
        (lambda: prepare_qat(small_net(), calibration_data=[IMAGES], freeze_norms_after=-1), "negative"),
        (
            lambda: prepare_qat(small_net(), QuantConfig(granularity="per_tensor"), calibration_data=[IMAGES]),
            "each output channel",
        ),
    ],
)
def test_what_can_not_be_done_says_so_and_names_the_place(run: Callable[[], object], message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        run()


def test_gradient_of_a_row_step_is_scaled_as_lsq_does() -> None:
    weight = torch.randn(4, 10)
    quantizer = WeightQuantizer(torch.full((4,), 0.1), 4)
    quantizer(weight).sum().backward()
    plain = torch.full((4,), 0.1, requires_grad=True)
    fake_quantize(weight, plain, None, (-7, 7)).sum().backward()
    assert plain.grad is not None and quantizer.log_step.grad is not None
    torch.testing.assert_close(quantizer.log_step.grad, plain.grad * 0.1 / (10 * 7) ** 0.5)
