"""Schedules, number formats, and optimizers that wait for their parameters."""

from __future__ import annotations

import contextlib
import copy
import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import deepseek as ds
from deepseek.errors import ConfigError
from deepseek.hardware import bf16_is_fast
from deepseek.optim.deferred import DeferredOptimizer
from deepseek.optim.muon import MuonAdamW, hidden_matrices
from deepseek.optim.precision import Precision
from deepseek.optim.schedules import learning_rate
from tests.toy_gpt import toy_gpt

CPU = torch.device("cpu")


def rates(schedule: str, total: int, warmup: int, peak: float = 1.0, floor: float = 0.1) -> list[float]:
    return [
        learning_rate(
            step,
            peak=peak,
            total_steps=total,
            warmup_steps=warmup,
            schedule=schedule,
            floor=floor,  # type: ignore[arg-type]
        )
        for step in range(total)
    ]


def test_warm_up_rises_in_equal_parts_to_the_peak() -> None:
    for schedule in ("cosine", "linear", "constant"):
        assert rates(schedule, 20, 4)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_schedules_are_those_of_torch() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    theirs = {
        "cosine": lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=10, eta_min=0.2),
        "linear": lambda opt: torch.optim.lr_scheduler.LinearLR(opt, start_factor=1.0, end_factor=0.1, total_iters=10),
        "constant": lambda opt: torch.optim.lr_scheduler.ConstantLR(opt, factor=1.0),
    }
    for schedule, make in theirs.items():
        optimizer = torch.optim.SGD([parameter], lr=2.0)
        scheduler = make(optimizer)
        wanted = []
        for _ in range(10):
            wanted.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert rates(schedule, 10, 0, peak=2.0) == pytest.approx(wanted), schedule


@given(
    total=st.integers(1, 300),
    warmup=st.integers(0, 400),
    peak=st.floats(1e-8, 10),
    floor=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
)
def test_a_rate_is_never_above_the_peak_nor_below_the_floor_once_warm(
    total: int, warmup: int, peak: float, floor: float, schedule: str
) -> None:
    found = rates(schedule, total, warmup, peak, floor)
    assert all(0 < rate <= peak * (1 + 1e-9) or rate == 0 == floor for rate in found)
    warm = found[warmup:]
    assert all(rate >= floor * peak * (1 - 1e-9) for rate in warm)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in zip(warm, warm[1:], strict=False))


def test_fp16_on_a_cpu_becomes_another_format_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    precision = Precision("fp16", CPU)
    assert precision.name == ("bf16" if bf16_is_fast(CPU) else "fp32") == Precision("auto", CPU).name
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "float16 is slow" in caplog.text and precision.name in caplog.text
    assert precision.scaler() is None


def test_what_autocast_rounds_and_what_it_leaves() -> None:
    linear, x = nn.Linear(3, 3), torch.randn(2, 3)
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        precision = Precision(name, CPU)  # type: ignore[arg-type]
        with precision.autocast():
            assert linear(x).dtype is dtype
    assert linear.weight.dtype is torch.float32
    assert isinstance(Precision("fp32", CPU).autocast(), contextlib.nullcontext)


def test_a_fixed_loss_scale_and_a_dynamic_one() -> None:
    fixed = Precision("fp32", CPU).scaler(128)
    assert fixed is not None and fixed.get_scale() == 128
    half = Precision("fp32", CPU)
    half.dtype = torch.float16  # as on a GPU
    dynamic = half.scaler()
    assert dynamic is not None and dynamic.get_scale() == 65536 and dynamic.get_growth_factor() == 2


def test_an_optimizer_without_parameters_waits_for_them() -> None:
    deferred = ds.optim.AdamW(lr=5e-4, weight_decay=0.2)
    assert isinstance(deferred, DeferredOptimizer) and repr(deferred) == "AdamW(lr=0.0005, weight_decay=0.2)"
    bound = deferred.bind(nn.Linear(2, 2).parameters())
    assert type(bound) is torch.optim.AdamW
    assert bound.param_groups[0]["lr"] == 5e-4 and bound.param_groups[0]["weight_decay"] == 0.2
    assert isinstance(ds.optim.SGD(), DeferredOptimizer)


def test_with_parameters_it_is_torchs_own_object() -> None:
    model = nn.Linear(2, 2)
    for optimizer in (
        ds.optim.AdamW(model.parameters(), lr=0.1),
        ds.optim.AdamW(params=model.parameters()),
        ds.optim.AdamW(model.parameters(), 0.1),
    ):
        assert type(optimizer) is torch.optim.AdamW
    with pytest.raises(ValueError, match="empty parameter list"):
        ds.optim.AdamW([])


def test_instances_and_subclasses_are_told_apart_as_with_torchs_names() -> None:
    model = nn.Linear(2, 2)
    theirs = torch.optim.AdamW(model.parameters())
    ours = ds.optim.AdamW(model.parameters())
    assert isinstance(theirs, ds.optim.AdamW) and isinstance(ours, torch.optim.AdamW)
    assert isinstance(theirs, ds.optim.Adam) and not isinstance(theirs, ds.optim.SGD)
    assert issubclass(torch.optim.AdamW, ds.optim.AdamW) and issubclass(ds.optim.AdamW, torch.optim.Optimizer)
    assert not isinstance(ds.optim.AdamW(), ds.optim.AdamW)
    assert ds.optim.Optimizer is torch.optim.Optimizer and ds.optim.lr_scheduler is torch.optim.lr_scheduler


def test_a_class_derived_from_ours_is_an_optimizer_of_its_own() -> None:
    class Louder(ds.optim.SGD):  # type: ignore[name-defined,misc]
        def volume(self) -> int:
            return 11

    optimizer = Louder(nn.Linear(2, 2).parameters(), lr=0.5)
    assert type(optimizer) is Louder and optimizer.volume() == 11
    assert isinstance(optimizer, ds.optim.SGD) and not isinstance(torch.optim.SGD([torch.zeros(1)]), Louder)


def test_a_wrong_setting_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="learning_rate"):
        ds.optim.AdamW(learning_rate=3)
    with pytest.raises(ValueError, match="Invalid learning rate"):
        ds.optim.AdamW(lr=-math.pi).bind(nn.Linear(2, 2).parameters())


def small_gpt() -> nn.Module:
    return toy_gpt().train()


def learn(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int) -> None:
    for step in range(steps):
        ids = torch.randint(48, (2, 9), generator=torch.Generator().manual_seed(step))
        model(ids).logsumexp(-1).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    matrices = hidden_matrices(model)
    inside = {id(p) for p in matrices}
    return matrices, [p for p in model.parameters() if id(p) not in inside]


def test_muon_with_adamw_does_what_torchs_two_do_side_by_side() -> None:
    ours, theirs = small_gpt(), small_gpt()
    matrices, others = split_parameters(ours)
    assert len(matrices) == 8 and all(p.dim() == 2 for p in matrices)  # 4 linear layers in each of 2 blocks
    assert any(p is ours.token_embedding.weight for p in others)
    learn(ours, [MuonAdamW(matrices, others, lr=0.02, weight_decay=0.1)], 4)
    matrices, others = split_parameters(theirs)
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    groups = [
        {"params": [p for p in others if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
    ]
    learn(theirs, [muon, torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.95), fused=True)], 4)
    assert torch.equal(weights(ours), weights(theirs))


def test_the_state_of_muon_with_adamw_can_be_loaded_and_its_rate_set() -> None:
    model, other = small_gpt(), small_gpt()
    first = MuonAdamW(*split_parameters(model), lr=0.02)
    learn(model, [first], 3)
    other.load_state_dict(model.state_dict())
    second = MuonAdamW(*split_parameters(other), lr=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for optimizer in (first, second):
        for group in optimizer.param_groups:
            group["lr"] = 0.01
    learn(model, [first], 3)
    learn(other, [second], 3)
    assert torch.equal(weights(model), weights(other))
    for group in second.param_groups:
        group["lr"] = 0.0
    before = weights(other).clone()
    learn(other, [second], 1)
    assert torch.equal(weights(other), before)


def test_a_model_without_hidden_matrices_is_refused() -> None:
    with pytest.raises(ConfigError, match="optimizer: adamw"):
        MuonAdamW(*split_parameters(nn.Embedding(3, 2)), lr=0.1)
