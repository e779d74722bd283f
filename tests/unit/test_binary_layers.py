"""Binary layers: the compiled kernel against the floating-point meaning, bit for bit; training; what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn import binary_kernel, native_build
from deepseek.nn.binary_functions import sign, ternarize
from deepseek.nn.binary_layers import BinaryConv2d, BinaryLinear

SOURCE = Path(binary_kernel.__file__).with_suffix(".cpp")


def signs(x: Tensor) -> Tensor:
    return (x >= 0).double() * 2 - 1


def conv_reference(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """XNOR-Net's convolution in float64: alpha, K and the product of signs, each as the paper defines it."""
    x, weight = x.double(), conv.weight.detach().double()
    geometry = conv.stride, conv.padding, conv.dilation
    rows, columns = conv.kernel_size
    k = F.conv2d(
        x.abs().mean(1, keepdim=True), torch.ones(1, 1, rows, columns).double() / (rows * columns), None, *geometry
    )
    alpha = weight.abs().mean((1, 2, 3)).reshape(-1, 1, 1)
    y = F.conv2d(signs(x), signs(weight), None, *geometry, conv.groups) * alpha * k
    return y if conv.bias is None else y + conv.bias.detach().double().reshape(-1, 1, 1)


@pytest.mark.parametrize("shape", [(1, 64), (5, 70), (2, 3, 130), (7, 1), (0, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_counts_what_the_formula_says(shape: tuple[int, ...], bias: bool) -> None:
    linear, x = nn.Linear(shape[-1], 37, bias=bias), torch.randn(shape)
    layer = BinaryLinear.from_linear(linear)
    weight = linear.weight.detach().double()
    wanted = F.linear(signs(x), signs(weight)) * x.double().abs().mean(-1, keepdim=True) * weight.abs().mean(1)
    wanted = wanted if linear.bias is None else wanted + linear.bias.detach().double()
    with torch.no_grad():
        found = layer(x)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(found, layer(x.clone().requires_grad_()))  # the kernel and the floating-point path, to the bit
    assert layer(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (3, {"kernel_size": 3, "padding": 1}),
        (64, {"kernel_size": 3, "padding": 1, "bias": False}),
        (70, {"kernel_size": (1, 3), "padding": (0, 2), "stride": (1, 2)}),
        (130, {"kernel_size": 1, "stride": 2}),
        (16, {"kernel_size": 3, "padding": 2, "dilation": 2}),
        (8, {"kernel_size": 3, "groups": 2}),
    ],
)
def test_a_convolution_counts_what_the_formula_says(channels: int, options: dict[str, Any]) -> None:
    conv, x = nn.Conv2d(channels, 38, **options), torch.randn(2, channels, 9, 11)
    layer = BinaryConv2d.from_conv(conv)
    with torch.no_grad():
        found = layer(x)
        assert torch.equal(found, layer(x.contiguous(memory_format=torch.channels_last)))
    torch.testing.assert_close(found.double(), conv_reference(conv, x), rtol=1e-4, atol=1e-5)
    assert torch.equal(found, layer(x.clone().requires_grad_()))


def test_zero_is_positive_and_what_is_not_a_number_stays_visible() -> None:
    x = torch.tensor([[0.0, -0.0, 1e-30, -1e-30], [1.0, float("nan"), 1.0, 1.0]])
    assert sign(x)[0].tolist() == [1, 1, 1, -1]
    layer = BinaryLinear.from_linear(nn.Linear(4, 3))
    with torch.no_grad():
        assert layer(x).isfinite().all(dim=1).tolist() == [True, False]


def test_a_processor_or_machine_without_the_kernel_gets_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = BinaryConv2d.from_conv(nn.Conv2d(20, 40, 3, padding=1)), torch.randn(2, 20, 8, 8)
    with torch.no_grad():
        wanted = layer(x)
        monkeypatch.setattr(binary_kernel, "library", lambda: None)
        assert torch.equal(layer(x), wanted)
    assert layer(x).shape == wanted.shape


@pytest.mark.skipif(native_build.find_compiler() is None, reason="no C++ compiler here")
def test_the_plain_form_of_the_kernel_counts_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layer, x = BinaryConv2d.from_conv(nn.Conv2d(70, 40, 3, padding=1)), torch.randn(2, 70, 8, 9)
    with torch.no_grad():
        wanted = layer(x)
        source = tmp_path / "plain.cpp"
        source.write_text(SOURCE.read_text().replace("#define WIDE 1", "").replace("#include <immintrin.h>", ""))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        plain = native_build.load_library(source)
        assert plain.handle is not None, plain.reason
        assert plain.handle.binary_kernel_form() == 1
        monkeypatch.setattr(binary_kernel, "library", lambda: plain.handle)
        assert torch.equal(layer(x), wanted)


@pytest.mark.skipif(native_build.find_compiler() is None, reason="no C++ compiler here")
def test_a_library_is_built_once_and_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "small.cpp"
    source.write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = native_build.load_library(source)
    assert found.handle is not None, found.reason
    assert found.handle.answer() == 42
    monkeypatch.setattr(native_build, "_built", _only_load)
    assert native_build.load_library(source).handle is not None
    folder = native_build.cache_folder()
    assert [path.suffix for path in folder.iterdir()] == [".so"]


def _only_load(source: Path, target: Path, compiler: str, flags: tuple[str, ...]) -> Any:
    assert target.is_file()
    return object()


def test_why_there_is_no_library_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "broken.cpp"
    source.write_text("this is not C++\n")
    if native_build.find_compiler() is not None:
        broken = native_build.load_library(source)
        assert broken.handle is None and "error" in broken.reason
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        source.write_text('extern "C" int answer() { return 42; }\n')
        assert native_build.load_library(source).handle is None
    monkeypatch.setattr(native_build, "find_compiler", lambda: None)
    assert "no C++ compiler" in native_build.load_library(source).reason
    monkeypatch.setenv("DEEPSEEK_NATIVE", "0")
    assert "DEEPSEEK_NATIVE" in native_build.load_library(source).reason


def test_a_layer_sees_new_weights() -> None:
    layer, other = (BinaryLinear.from_linear(nn.Linear(64, 32)) for _ in range(2))
    x = torch.randn(3, 64)
    with torch.no_grad():
        before = layer(x)
        clone = copy.deepcopy(layer)
        layer.load_state_dict(other.state_dict())
        assert torch.equal(layer(x), other(x))
        assert torch.equal(clone(x), before)


def test_weights_take_a_thirty_second_of_the_memory() -> None:
    linear, conv = nn.Linear(256, 64), nn.Conv2d(64, 32, 3)
    assert BinaryLinear.from_linear(linear).weight.numel() * 32 == linear.weight.numel() * 4
    assert BinaryConv2d.from_conv(conv).weight.numel() * 32 == conv.weight.numel() * 4


def test_float_inputs_meet_the_scaled_signs() -> None:
    linear, conv = nn.Linear(20, 6), nn.Conv2d(4, 6, 3)
    x, image = torch.randn(3, 20), torch.randn(1, 4, 5, 5)
    layer, other = BinaryLinear.from_linear(linear, False), BinaryConv2d.from_conv(conv, False)
    torch.testing.assert_close(layer(x), F.linear(x, layer.dequantized_weight(), linear.bias))
    torch.testing.assert_close(other(image), F.conv2d(image, other.dequantized_weight(), conv.bias))


def test_export_and_compile_take_the_floating_point_path() -> None:
    layer, x = BinaryConv2d.from_conv(nn.Conv2d(8, 6, 3, padding=1)), torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        wanted = layer(x)
        assert torch.equal(torch.export.export(layer, (x,)).module()(x), wanted)
        torch._dynamo.reset()
        assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(x), wanted)


def test_gradients_are_straight_through() -> None:
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], requires_grad=True)
    (sign(x) * torch.arange(1.0, 6.0)).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 2, 3, 4, 0]
    weight = torch.randn(3, 4, requires_grad=True)
    factors = torch.randn(3, 4)
    (ternarize(weight) * factors).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, factors)
