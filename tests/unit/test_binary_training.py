"""Latent layers: they learn, answer as their packed form does to the bit, and refuse what they can't be."""

from __future__ import annotations

import copy
from pathlib import Path

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepseek.errors import ModelError
from deepseek.export.onnx_export import export_onnx
from deepseek.nn.int8_swap import int8_specs
from deepseek.nn.low_bit_training import LatentBits, LatentConv2d, LatentLinear, pack_latent, to_latent
from deepseek.quantization.low_bit import low_bit_layer
from tests.toy_language_model import ToyLanguageModel
from tests.unit.test_int4_layers import low_bit_config


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.Flatten(),
        nn.Linear(16 * 16, 32),
        nn.BatchNorm1d(32),
        nn.Linear(32, 2),
    )


@pytest.mark.parametrize("bits", [1, 2])
def test_training_through_signs_learns_and_packing_changes_nothing(bits: LatentBits) -> None:
    torch.manual_seed(0)
    model = small_net()
    names = set(model.state_dict())
    assert to_latent(model, bits) == ["2", "5"]
    assert set(model.state_dict()) == names
    labels = torch.randint(2, (64,))
    images = torch.randn(64, 1, 8, 8)
    images[:, :, 2:5, 2:5] += 1.5 * (labels * 2.0 - 1).reshape(-1, 1, 1, 1)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    before = model[2].weight.detach().clone()  # type: ignore[index]  # a Sequential
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    assert not torch.equal(before, model[2].weight)  # type: ignore[index]  # a Sequential
    model.eval()
    packed = copy.deepcopy(model)
    assert pack_latent(packed) == ["2", "5"]
    kind = "binary" if bits == 1 else "ternary"
    assert {spec["kind"] for spec in int8_specs(packed).values()} == {f"{kind}_conv2d", f"{kind}_linear"}
    with torch.no_grad():
        wanted, found = model(images), packed(images)
    if bits == 1:
        assert torch.equal(found, wanted)
    else:
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)  # the 4-bit kernel rounds inputs to bf16


def test_the_gradient_of_a_binary_weight_is_the_papers() -> None:
    linear, x = LatentLinear.from_linear(nn.Linear(5, 3, bias=False), 1), torch.randn(7, 5)
    with torch.no_grad():
        linear.weight[0, 0] = 1.5  # beyond the clip
    factors = torch.randn(7, 3)
    (linear(x) * factors).sum().backward()
    weight, grad = linear.weight.detach(), linear.weight.grad
    signs = torch.where(weight >= 0, 1.0, -1.0)
    outer = factors.t() @ (torch.where(x >= 0, 1.0, -1.0) * x.abs().mean(1, keepdim=True))  # of the scaled signs
    alpha = weight.abs().mean(1, keepdim=True)
    wanted = outer * alpha * (weight.abs() <= 1) + (outer * signs).sum(1, keepdim=True) * signs / 5
    torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-5)


def test_shared_and_named_layers_stay() -> None:
    model = ToyLanguageModel()
    names = to_latent(model, 1, skip=["blocks.0.*"])
    assert names == [f"blocks.1.{name}" for name in ("qkv", "projection", "up", "down")]
    assert type(model.lm_head) is nn.Linear


def test_what_can_not_be_trained_so_is_named_and_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(ModelError, match="no layer is left"):
        to_latent(model, 1)
    with pytest.raises(ModelError, match="layer '0'"):
        to_latent(model, 4, skip=[])  # type: ignore[arg-type]  # what a wrong setting does
    with pytest.raises(ModelError, match="reflect"):
        LatentConv2d.from_conv(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), 1)
    to_latent(model, 1, skip=[])
    with torch.no_grad():
        model[1].weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match="layer '1' is not finite"):
        pack_latent(model)
    assert isinstance(model[0], LatentLinear)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_onnx_runtime_answers_as_the_packed_layers_do(bits: int, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.Flatten(), nn.Linear(8 * 16, 6)).eval()
    config = low_bit_config(weight_bits=bits, quant_scheme="asymmetric")
    for index in (0, 2):
        model[index] = low_bit_layer(model[index], str(index), config)
    x = torch.randn(2, 3, 8, 8)
    path = export_onnx(model, tmp_path / "model.onnx", {"input": x}).path
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    wanted = model(x.requires_grad_()).detach()  # the exact path
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-4)
