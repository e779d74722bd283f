"""`build_optimizer`: groups, rates by depth, and the memory its states take."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.factory import build, model_config
from deepseek.optim.build import (
    OptimizerSettings,
    build_optimizer,
    parameter_groups,
    state_bytes,
    use_bf16_weights,
    use_fp32_weights,
)
from deepseek.optim.depth import layer_depths
from deepseek.optim.lean_adamw import LeanAdamW
from deepseek.optim.muon import MuonAdamW, hidden_matrices
from deepseek.optim.precision import Precision
from deepseek.tasks.language_modeling import LanguageModeling
from tests.toy_gpt import toy_batches, toy_gpt

TOYS = Path(__file__).parents[1] / "toys"


def depths_of(name: str) -> dict[str, int]:
    with torch.device("meta"):
        return layer_depths(build(model_config(yaml.safe_load((TOYS / f"{name}.yaml").read_text()))[1]))


def prefix_depths(name: str, *prefixes: str) -> list[set[int]]:
    depths = depths_of(name)
    return [{depth for key, depth in depths.items() if key.startswith(prefix)} for prefix in prefixes]


def test_depths_are_read_from_the_lists_of_blocks() -> None:
    assert prefix_depths("gpt", "token_embedding", "blocks.0", "blocks.1", "norm") == [{0}, {1}, {2}, {3}]
    assert prefix_depths("vit", "class_token", "patch", "blocks.0", "blocks.1", "classifier") == [
        {0},
        {0},
        {1},
        {2},
        {3},
    ]
    assert prefix_depths("t5", "token_embedding", "encoder.1", "decoder.0", "decoder_norm") == [{0}, {2}, {3}, {5}]
    assert prefix_depths("resnet", "stem", "stages.0.0", "stages.1.0", "stages.1.1", "classifier") == [
        {0}, {1}, {2}, {3}, {4}
    ]  # fmt: skip
    assert prefix_depths("mlp-batch-norm", "layers.0", "layers.2", "head") == [{1}, {3}, {4}]
    assert prefix_depths("yolov5", "stem", "heads.0", "heads.2")[1:] == [{10}, {10}]
    assert set(depths_of("unet_plus_plus").values()) == {0}


@pytest.mark.parametrize("toy", sorted(path.stem for path in TOYS.glob("*.yaml")))
def test_depth_never_falls_in_the_order_of_the_parameters_inside_a_block(toy: str) -> None:
    depths = depths_of(toy)
    assert min(depths.values()) in (0, 1) and len(depths) > 0
    values = sorted(set(depths.values()))
    assert values == list(range(values[0], values[-1] + 1))


def test_rates_fall_by_depth_and_only_matrices_decay() -> None:
    model = toy_gpt()
    settings = OptimizerSettings(learning_rate=0.5, layer_decay=0.5, weight_decay=0.2)
    by_id = {id(p): group for group in build_optimizer(model, settings).param_groups for p in group["params"]}
    depths = layer_depths(model)
    for name, parameter in model.named_parameters():
        group = by_id[id(parameter)]
        assert group["lr"] == pytest.approx(0.5 * 0.5 ** (3 - depths[name])), name
        assert group["weight_decay"] == (0.2 if parameter.dim() >= 2 else 0.0)
    assert len(by_id) == len(list(model.parameters()))


def test_without_layer_decay_there_are_two_groups_of_one_rate() -> None:
    for decay in (None, 1.0):
        optimizer = build_optimizer(toy_gpt(), OptimizerSettings(layer_decay=decay, learning_rate=0.25))
        assert type(optimizer) is torch.optim.AdamW
        assert [(g["lr"], g["weight_decay"], g["fused"]) for g in optimizer.param_groups] == [
            (0.25, 0.1, True),
            (0.25, 0.0, True),
        ]
    assert len(parameter_groups(toy_gpt(), OptimizerSettings(weight_decay=0.0))) == 1


def test_frozen_parameters_are_left_out() -> None:
    model = toy_gpt()
    model.token_embedding.weight.requires_grad_(False)
    held = {id(p) for group in build_optimizer(model, OptimizerSettings()).param_groups for p in group["params"]}
    assert id(model.token_embedding.weight) not in held and len(held) == len(list(model.parameters())) - 1


def test_muon_takes_the_hidden_matrices_whatever_the_groups() -> None:
    for settings in (OptimizerSettings(optimizer="muon"), OptimizerSettings(optimizer="muon", layer_decay=0.5)):
        model = toy_gpt()
        optimizer = build_optimizer(model, settings)
        assert isinstance(optimizer, MuonAdamW)
        held = {id(p) for group in optimizer.muon.param_groups for p in group["params"]}
        assert held == {id(p) for p in hidden_matrices(model)}
        rates = {group["lr"] for group in optimizer.param_groups}
        assert len(rates) == (1 if settings.layer_decay is None else 4)


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 12) -> list[float]:
    task, losses = LanguageModeling(), []
    for batch in toy_batches(steps):
        with Precision("bf16", torch.device("cpu")).autocast():
            loss = task.loss_sum(model, batch) / task.count(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


CHOICES: list[dict[str, Any]] = [
    {},
    {"optimizer": "muon"},
    {"optimizer": "muon", "optimizer_bits": 8},
    {"optimizer_bits": 8},
    {"optimizer_bits": 16, "weights_dtype": "bf16"},
    {"weights_dtype": "bf16"},
    {"optimizer_bits": 8, "weights_dtype": "bf16", "layer_decay": 0.9},
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_choice_learns_in_the_memory_foretold(choice: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = toy_gpt(d_model=64).train()
    settings = OptimizerSettings(learning_rate=1e-2, **choice)
    foretold = state_bytes(model, settings)
    optimizer = build_optimizer(model, settings)
    losses = learn(model, optimizer)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    tensors = [
        v for state in optimizer.state.values() for k, v in state.items() if isinstance(v, Tensor) and k != "step"
    ]
    assert sum(v.numel() * v.element_size() for v in tensors) == pytest.approx(foretold, rel=0.01)
    with torch.device("meta"):
        assert state_bytes(toy_gpt_shape(), settings) == foretold


def toy_gpt_shape() -> nn.Module:
    return build(toy_gpt(d_model=64).config)


def test_bf16_weights_are_the_matrices_and_come_back() -> None:
    model = toy_gpt()
    identities, before = [id(p) for p in model.parameters()], [p.detach().clone() for p in model.parameters()]
    use_bf16_weights(model)
    assert {(p.dim() >= 2, p.dtype) for p in model.parameters()} == {(True, torch.bfloat16), (False, torch.float32)}
    use_fp32_weights(model)
    assert [id(p) for p in model.parameters()] == identities
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert parameter.dtype is torch.float32
        torch.testing.assert_close(parameter.detach(), value, rtol=1 / 256, atol=0)


def test_offloading_on_a_cpu_has_no_effect_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = toy_gpt()
    optimizer = build_optimizer(model, OptimizerSettings(offload_optimizer=True))
    assert type(optimizer) is torch.optim.AdamW
    assert "offload_optimizer has no effect" in caplog.text


def test_depth_without_blocks_has_no_effect_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    optimizer = build_optimizer(nn.Linear(3, 2), OptimizerSettings(layer_decay=0.5, learning_rate=0.5))
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}
    assert "layer_decay has no effect: Linear has no list of blocks" in caplog.text


def test_settings_that_exclude_each_other_are_refused() -> None:
    for choice, message in [
        ({"optimizer": "muon", "weights_dtype": "bf16"}, "muon does not go with weights_dtype"),
        ({"optimizer": "muon", "offload_optimizer": True}, "muon does not go with offload"),
        ({"offload_optimizer": True, "optimizer_bits": 8}, "choose one"),
        ({"layer_decay": 1.5}, "at most 1"),
        ({"optimizer_bits": 4}, "8, 16 or 32"),
        ({"optimizer": "sgd"}, "adamw or muon"),
    ]:
        with pytest.raises(ConfigError, match=message):
            OptimizerSettings(**choice)  # type: ignore[arg-type]


def test_settings_are_read_from_any_config() -> None:
    class Config:
        learning_rate = 0.1
        betas = [0.5, 0.6]
        optimizer_bits = 8

    settings = OptimizerSettings.of(Config())
    assert settings == OptimizerSettings(learning_rate=0.1, betas=(0.5, 0.6), optimizer_bits=8)
    assert isinstance(build_optimizer(toy_gpt(), Config()), LeanAdamW)
