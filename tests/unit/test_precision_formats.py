"""Number formats beyond bf16: fast float32, float8, and loss scales."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.nn.float8_linear import Float8Linear, to_float8
from deepseek.nn.float8_swap import swap_from_float8, swap_to_float8
from deepseek.optim import precision as precision_module
from deepseek.optim.precision import LossScaler, Precision, is_exhausted

CPU = torch.device("cpu")


def test_fast_float32_sets_its_switch_only_inside() -> None:
    precision = Precision("fp32_fast", CPU)
    switch = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = switch.fp32_precision
    for context in (precision.matmul, precision.autocast):
        with pytest.raises(RuntimeError, match="stop"), context():
            assert switch.fp32_precision == "bf16"
            with precision.autocast():
                pass
            assert switch.fp32_precision == "bf16"
            raise RuntimeError("stop")
        assert switch.fp32_precision == before
    with Precision("fp32", CPU).matmul(), Precision("bf16", CPU).matmul():
        assert switch.fp32_precision == before


def test_fast_float32_keeps_float32_tensors_and_nearly_their_values() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(128, 128), torch.randn(64, 128)
    with Precision("fp32_fast", CPU).autocast():
        out = layer(x)
    assert out.dtype is torch.float32
    torch.testing.assert_close(out, layer(x), rtol=0.02, atol=0.02)


def test_fast_float32_says_where_it_has_no_effect(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision_module, "cpu_features", lambda: frozenset({"avx2"}))
    Precision("fp32_fast", CPU)
    assert "fp32_fast has no effect here" in caplog.text


def test_float8_on_a_device_without_it_says_what_is_wanted() -> None:
    with pytest.raises(ConfigError, match="compute capability 9.0 or newer") as error:
        Precision("fp8", CPU)
    assert "a device of type cpu" in str(error.value)


def test_bfloat16_weights_need_bfloat16_products() -> None:
    Precision("bf16", CPU).check_weights("bf16")
    Precision("fp32", CPU).check_weights("fp32")
    with pytest.raises(ConfigError, match="weights_dtype: bf16 with precision: fp32"):
        Precision("fp32", CPU).check_weights("bf16")


def test_a_dynamic_scale_grows_and_halves_as_torchs_and_has_a_floor() -> None:
    half = Precision("fp32", CPU)
    half.dtype = torch.float16  # as on a GPU
    scaler = half.scaler(min_scale=16384.0)
    assert isinstance(scaler, LossScaler) and isinstance(scaler, torch.amp.GradScaler)
    assert scaler.get_growth_interval() == 2000 and scaler.get_backoff_factor() == 0.5
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scales = []
    for _ in range(3):
        scaler.scale(weight.sum()).backward()  # type: ignore[no-untyped-call]
        weight.grad = torch.full_like(weight, math.inf)
        scaler.step(optimizer)
        scaler.update()
        scales.append((scaler.get_scale(), is_exhausted(scaler)))
    assert scales == [(32768.0, False), (16384.0, False), (8192.0, True)]
    assert torch.equal(weight, torch.ones(2))


def test_a_fixed_scale_never_grows() -> None:
    scaler = Precision("fp32", CPU).scaler(128)
    assert scaler is not None and scaler.get_growth_interval() == 2**31 - 1 and not is_exhausted(scaler)
    assert is_exhausted(torch.amp.GradScaler("cpu", init_scale=0.5))
    small = Precision("fp32", CPU).scaler(0.25)
    assert small is not None and not is_exhausted(small)
    with pytest.raises(ConfigError, match="0 < floor <= scale"):
        LossScaler("cpu", 8.0, min_scale=9.0)


def quantized(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `tensor` after a trip through float8, written down from the formula."""
    largest = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}[dtype]
    scale = tensor.abs().max() / largest
    return (tensor / scale).to(dtype).float() * scale


def test_a_tensor_in_float8_uses_the_whole_range() -> None:
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        values = torch.randn(32, 16) * 1e-4
        found, scale = to_float8(values, dtype)
        assert found.dtype is dtype and float(found.float().abs().max()) == torch.finfo(dtype).max
        torch.testing.assert_close(found.float() * scale, quantized(values, dtype), rtol=0, atol=0)
    zeros, scale = to_float8(torch.zeros(16, 16), torch.float8_e4m3fn)
    assert not zeros.float().any() and math.isfinite(float(scale))


@pytest.mark.parametrize("bias", [True, False])
def test_a_float8_layer_is_its_formula_forward_and_backward(bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(32, 48, bias=bias)
    layer = Float8Linear.from_linear(plain)
    assert layer.weight is plain.weight and layer.bias is plain.bias
    x = torch.randn(2, 8, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype is torch.bfloat16 and out.shape == (2, 8, 48)
    e4m3, e5m2 = torch.float8_e4m3fn, torch.float8_e5m2
    x8, w8 = quantized(x.detach().view(16, 32), e4m3), quantized(plain.weight.detach(), e4m3)
    wanted = x8 @ w8.t() + (plain.bias.detach() if bias else 0)
    torch.testing.assert_close(out.detach().float().view(16, 48), wanted, rtol=0.01, atol=0.02)
    gradient = torch.randn(16, 48).bfloat16()
    out.backward(gradient.view(2, 8, 48))
    g8 = quantized(gradient.float(), e5m2)
    assert x.grad is not None and plain.weight.grad is not None and plain.weight.grad.dtype is torch.float32
    torch.testing.assert_close(x.grad.view(16, 32), g8 @ w8, rtol=0.01, atol=0.02)
    torch.testing.assert_close(plain.weight.grad, g8.t() @ x8, rtol=0.01, atol=0.05)
    if bias:
        torch.testing.assert_close(plain.bias.grad, gradient.float().sum(0), rtol=0.02, atol=0.02)


def test_rows_that_do_not_fit_are_computed_in_bfloat16() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(32, 16)
    layer, x = Float8Linear.from_linear(plain), torch.randn(5, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), plain(x))
    assert layer(x[:0]).shape == (0, 16)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while it traces
def test_a_float8_layer_compiles_whole() -> None:
    torch.manual_seed(0)
    layer = Float8Linear.from_linear(nn.Linear(32, 16))
    x = torch.randn(16, 32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for module in (layer, compiled):
        layer.zero_grad()
        module(x).float().square().sum().backward()
        gradient = layer.weight.grad
        assert gradient is not None
        if module is layer:
            wanted = gradient.clone()
    torch.testing.assert_close(gradient, wanted)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 32)
        self.wide, self.odd, self.small = nn.Linear(32, 64), nn.Linear(32, 65), nn.Linear(16, 16)
        self.lm_head, self.tied = nn.Linear(32, 64), nn.Linear(32, 64, bias=False)
        self.tied.weight = self.embedding.weight


def test_only_large_layers_that_fit_are_replaced_and_the_rest_listed() -> None:
    model = Head().eval()
    before = {name: id(p) for name, p in model.named_parameters()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    left = {layer.name: layer.reason for layer in swap_to_float8(model, smallest=1024)}
    assert type(model.wide) is Float8Linear and not model.wide.training
    assert left == {
        "odd": "65 x 32: not multiples of 16",
        "small": "16 x 16: too small to gain",
        "lm_head": "the output layer",
        "tied": "the output layer",
    }
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [layer.name for layer in swap_to_float8(model, smallest=1024)] == list(left)
    swap_from_float8(model)
    assert type(model.wide) is nn.Linear and {name: id(p) for name, p in model.named_parameters()} == before
