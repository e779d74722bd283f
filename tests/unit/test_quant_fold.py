"""Batch norms folded into the layer before them: equal answers, nothing else touched, and back from a bundle."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deepseek import bundle
from deepseek.errors import ModelError, QuantizationError
from deepseek.models import build
from deepseek.nn.fold_norm import apply, describe, fold_norms
from deepseek.nn.structure import apply_structure, describe_structure
from deepseek.quantization import QuantConfig, quantize_model, quantize_with_report

TOYS = Path(__file__).parent.parent / "toys"
NORMED = [
    "conformer", "efficientnet", "mlp-batch-norm", "mobilenet_v2", "mobilenet_v3", "resnet", "unet_plus_plus", "yolov5",
]  # fmt: skip


def seasoned(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """Give the batch norms statistics and weights of their own."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.bias):
                if tensor is not None:
                    tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
            for tensor in (module.running_var, module.weight):
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def outputs(found: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


@pytest.mark.parametrize("toy", NORMED)
def test_templates_answer_the_same_without_their_norms(toy: str) -> None:
    torch.manual_seed(0)
    model = seasoned(build(TOYS / f"{toy}.yaml"))
    inputs = model.example_inputs(2)  # type: ignore[operator]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = copy.deepcopy(model)
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert sorted(fold_norms(folded, inputs)) == sorted(norms) and norms
    with torch.no_grad():
        for one, two in zip(outputs(model(**inputs)), outputs(folded(**inputs)), strict=True):
            assert float((one - two).abs().max()) <= 1e-5 * max(1.0, float(one.abs().max()))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    rebuilt = build(TOYS / f"{toy}.yaml").eval()
    apply_structure(rebuilt, describe_structure(folded))
    rebuilt.load_state_dict(folded.state_dict())
    with torch.no_grad():
        for one, two in zip(outputs(rebuilt(**inputs)), outputs(folded(**inputs)), strict=True):
            assert torch.equal(one, two)


LAYERS = [
    (lambda: nn.Linear(6, 4), nn.BatchNorm1d, (3, 6)),
    (lambda: nn.Conv1d(6, 4, 3, groups=2, bias=False), nn.BatchNorm1d, (3, 6, 9)),
    (lambda: nn.Conv2d(6, 4, 3), nn.BatchNorm2d, (3, 6, 5, 5)),
    (lambda: nn.Conv3d(6, 4, 2), nn.BatchNorm3d, (2, 6, 4, 4, 4)),
    (lambda: nn.ConvTranspose1d(6, 4, 3, stride=2, groups=2), nn.BatchNorm1d, (3, 6, 9)),
    (lambda: nn.ConvTranspose2d(6, 4, 3, bias=False), nn.BatchNorm2d, (3, 6, 5, 5)),
    (lambda: nn.ConvTranspose3d(6, 4, 2, groups=2), nn.BatchNorm3d, (2, 6, 4, 4, 4)),
]


@pytest.mark.parametrize(("layer", "norm", "shape"), LAYERS)
@pytest.mark.parametrize("affine", [True, False])
def test_every_kind_of_layer_takes_its_norm_up(layer: Any, norm: Any, shape: tuple[int, ...], affine: bool) -> None:
    model = seasoned(nn.Sequential(layer(), norm(4, affine=affine), nn.ReLU()))
    folded, x = copy.deepcopy(model), torch.randn(shape)
    assert fold_norms(folded, x) == ["1"]
    assert isinstance(folded.get_submodule("1"), nn.Identity)
    torch.testing.assert_close(folded(x), model(x), atol=1e-5, rtol=1e-5)


class Branches(nn.Module):
    """Norms that must stay: the layer's output goes elsewhere, is changed before, or the layer serves twice."""

    def __init__(self) -> None:
        super().__init__()
        names = ("added", "shaped", "returned", "twice", "good")
        self.convs = nn.ModuleDict({name: nn.Conv2d(3, 3, 1) for name in names})
        self.norms = nn.ModuleDict({name: nn.BatchNorm2d(3) for name in (*names, "second")})
        self.over_time, self.time_norm = nn.Linear(4, 4), nn.BatchNorm1d(3)
        self.free = nn.BatchNorm2d(3, track_running_stats=False)
        self.before_free = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        added = self.convs["added"](x)
        returned = self.convs["returned"](x)
        parts = [
            self.norms["added"](added) + added,
            self.norms["shaped"](self.convs["shaped"](x) * 1.0),
            self.norms["returned"](returned),
            self.norms["twice"](self.convs["twice"](x)),
            self.norms["second"](self.convs["twice"](x)),
            self.norms["good"](self.convs["good"](x)),
            self.free(self.before_free(x)),
        ]
        return torch.stack(parts).sum(0), returned, self.time_norm(self.over_time(x[:, :, 0]))


def test_what_something_else_reads_is_left_alone() -> None:
    model = seasoned(Branches())
    x = torch.randn(2, 3, 4, 4)
    wanted = model(x)
    assert fold_norms(model, (x,)) == ["norms.good"]
    assert describe(model) == {"norms.good": "convs.good"}
    for one, two in zip(wanted, model(x), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_layers_that_share_a_weight_are_left_alone() -> None:
    first, second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    second.weight = first.weight
    assert fold_norms(nn.Sequential(first, nn.BatchNorm2d(3), second).eval(), torch.randn(1, 3, 2, 2)) == []


def test_a_structure_that_does_not_fit_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    for spec, message in (({"1": "2"}, "no layer '2'"), ({"0": "0"}, "can't be folded"), ({"1": "1"}, "can't be")):
        with pytest.raises(ModelError, match=message):
            apply(model, spec)
    with pytest.raises(ModelError, match="unknown change of structure"):
        apply_structure(model, {"fold": {}})


def test_static_quantization_folds_first_and_a_bundle_keeps_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = seasoned(build(TOYS / "resnet.yaml"))
    inputs = model.example_inputs(4)  # type: ignore[operator]
    quantized, report = quantize_with_report(model, QuantConfig(method="static"), [inputs])
    assert len(report.folded) == 12
    bundle.save(quantized, tmp_path / "b")
    loaded = bundle.load(tmp_path / "b", device="cpu")
    loaded.verify()
    with torch.no_grad():
        assert torch.equal(loaded.model(**inputs), quantized(**inputs))
    kept = quantize_model(model, QuantConfig(method="static", fold_norms=False), [inputs])
    assert any(isinstance(module, nn.BatchNorm2d) for module in kept.modules())


def test_norms_that_can_not_be_folded_are_told_and_quantization_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: nn.Module, example: Any) -> list[str]:
        raise RuntimeError("no such trace")

    monkeypatch.setattr("deepseek.quantization.quantize.fold_norms", fails)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).eval()
    with pytest.warns(UserWarning, match="batch norms stay as they are: RuntimeError: no such trace"):
        small = quantize_model(model, QuantConfig(method="static"), [torch.randn(4, 8)])
    assert isinstance(small[1], nn.BatchNorm1d)
    with pytest.raises(QuantizationError, match="does not fit"):
        quantize_model(model, QuantConfig(method="static"), [torch.randn(4, 9)])
