"""Quantization-aware training on the normal trainer: resume, precisions, bundles, and what it gains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepseek import bundle
from deepseek.compress import train_qat
from deepseek.errors import ModelError, NonFiniteLossError, QuantizationError
from deepseek.models.resnet import ResNet, ResNetConfig
from deepseek.nn.fake_quant.layers import FakeQuantLinear
from deepseek.nn.fake_quant.structure import apply
from deepseek.quantization import QuantConfig, quantize_model
from deepseek.quantization.qat import convert_qat, prepare_qat
from deepseek.tasks.image_classification import ImageClassification
from deepseek.tasks.task import evaluate
from deepseek.train import Trainer
from tests.toy_training import QUIET, weights
from tests.unit.test_trainer_resume import break_after

ASYMMETRIC = QuantConfig(method="qat", quant_scheme="asymmetric")


def images(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """Return batches of noisy pictures, one of six for each class."""
    generator = torch.Generator().manual_seed(99)
    classes = torch.randn(6, 1, 8, 8, generator=generator)
    generator.manual_seed(seed)
    batches = []
    for _ in range(count):
        labels = torch.randint(6, (16,), generator=generator)
        noise = torch.randn(16, 1, 8, 8, generator=generator)
        batches.append({"pixel_values": classes[labels] + 0.8 * noise, "labels": labels})
    return batches


def model(seed: int = 0) -> ResNet:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"depths": [1], "hidden_sizes": [16], "stem_size": 8, "block": "basic"}
    return ResNet(ResNetConfig(num_channels=1, num_labels=6, image_size=8, **sizes))


def prepared(**settings: Any) -> nn.Module:
    return prepare_qat(model(), ASYMMETRIC, calibration_data=images(2), freeze_norms_after=5, **settings)


def trainer(net: nn.Module, **settings: Any) -> Trainer:
    given = {"learning_rate": 1e-2, "train_dataset": images(6), "max_steps": 10, **QUIET, **settings}
    return Trainer(model=net, task=ImageClassification(), **given)


def test_a_stopped_run_goes_on_as_if_it_never_stopped(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"checkpoint_every": 4, "gradient_accumulation_steps": 2}
    whole = trainer(prepared(), output_dir=tmp_path / "whole", **settings)
    result = whole.train()
    with pytest.raises(NonFiniteLossError):
        break_after(trainer(prepared(), output_dir=tmp_path / "stopped", **settings), 6)
    rest = trainer(prepared(), output_dir=tmp_path / "stopped", **settings)
    assert rest.train(resume=True).losses == result.losses[4:]
    assert torch.equal(weights(rest.model), weights(whole.model))
    mine, theirs = whole.model, rest.model
    assert mine is not None and theirs is not None
    assert all(torch.equal(mine.get_buffer(name), buffer) for name, buffer in theirs.named_buffers())


def test_the_trainers_bundle_holds_the_prepared_model(tmp_path: Path) -> None:
    run = trainer(prepared(), output_dir=tmp_path)
    run.train()
    loaded, batch = bundle.load(tmp_path / "bundle", device="cpu"), images(1, seed=5)[0]["pixel_values"]
    loaded.verify()
    assert run.model is not None
    with torch.no_grad():
        assert torch.equal(loaded.model(batch), run.model(batch))
        assert torch.equal(convert_qat(loaded.model)(batch), convert_qat(run.model)(batch))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": {"nowhere": {"weight_bits": 8, "input": "float", "norm": None}}}, "no layer 'nowhere'"),
        ({"layers": {"classifier": {"weight_bits": 3, "input": "float", "norm": None}}}, "'classifier' can't be prep"),
        ({"layers": {"stem.norm": {"weight_bits": 8, "input": "float", "norm": None}}}, "'stem.norm' can't be prep"),
        ({"norms": {"stem.conv": 3}}, "'stem.conv' can't be a norm"),
    ],
)
def test_a_wrong_structure_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        apply(model(), change)


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16"},
        {"weights_dtype": "bf16", "precision": "bf16"},
        {"optimizer": "muon"},
        {"optimizer_bits": 8, "ema_decay": 0.9},
        {"recompute": "full"},
        {"memory_budget": "2GB"},
    ],
)
def test_it_trains_however_the_trainer_trains(settings: dict[str, Any]) -> None:
    net = prepared()
    result = trainer(net, max_steps=24, **settings).train()
    assert sum(result.losses[-4:]) < 0.8 * sum(result.losses[:4])
    converted, batch = convert_qat(net), images(1, seed=5)[0]["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(net(batch), converted(batch), rtol=1e-2, atol=1e-2)


def test_training_at_four_bits_regains_what_rounding_lost() -> None:
    """In each of three runs, and by a wide margin in all: a curve is fitted, where every weight counts."""
    points = torch.rand(256, 2, generator=torch.Generator().manual_seed(1)) * 4 - 2
    curve = (points[:, :1] * 2).sin() * points[:, 1:].cos()
    config = QuantConfig(method="qat", weight_bits=4, quant_scheme="asymmetric")
    rounded, trained = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
        assert fit(net, points, curve, steps=300, rate=1e-2) < 0.01
        coarse = prepare_qat(net, config, calibration_data=[points])
        rounded.append(error_of(convert_qat(coarse), points, curve))
        nearest = quantize_model(net, QuantConfig(weight_bits=4, granularity="per_channel"))
        fit(coarse, points, curve, steps=150, rate=3e-3)
        trained.append(error_of(convert_qat(coarse), points, curve))
        assert trained[-1] < min(rounded[-1], error_of(nearest, points, curve))
    assert sum(trained) < 0.4 * sum(rounded)


def fit(net: nn.Module, points: Tensor, curve: Tensor, steps: int, rate: float) -> float:
    """Train by any loop; return the last error."""
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        error = (net(points) - curve).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    return float(error.detach())


@torch.no_grad()
def error_of(net: nn.Module, points: Tensor, curve: Tensor) -> float:
    return float((net(points) - curve).square().mean())


def test_the_front_reports_before_and_after_and_leaves_the_model_alone() -> None:
    net, task, val = model(), ImageClassification(), images(4, seed=2)
    trainer(net, max_steps=30).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = train_qat(net, task, images(6), val, ASYMMETRIC, max_steps=8, learning_rate=1e-3, **QUIET)
    report = found.report
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert report.before == evaluate(net, val, task) and report.after == evaluate(found.model, val, task)
    assert report.steps == 8 == len(report.losses) and report.bytes_after < 0.4 * report.bytes_before
    assert "classifier" in report.layers and set(report.to_dict()) >= {"before", "rounded", "after", "layers"}
    assert isinstance(found.prepared.get_submodule("classifier"), FakeQuantLinear)
    assert report.after["loss"] < report.rounded["loss"] + 0.2


def test_the_front_refuses_what_it_can_not_measure() -> None:
    with pytest.raises(QuantizationError, match="read several times"):
        train_qat(model(), ImageClassification(), images(2), iter(images(1)), ASYMMETRIC)
