"""The first bad operator of a step: planted in a known layer, it is named with its inputs, and nothing is changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.checkpoint.training_state import random_state, seed_random
from deepseek.errors import CheckpointError, DataError
from deepseek.optim.muon import MuonAdamW
from deepseek.optim.precision import Precision
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.tasks.supervised import Supervised
from deepseek.train.first_bad import BadOperator, find_first_bad, replay, save_bad_step
from tests.toy_gpt import toy_batches, toy_gpt

CPU = torch.device("cpu")
FP32 = Precision("fp32", CPU)


class Operation(nn.Module):
    """A layer that does what a test asks."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def network(function: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return a network with `function` as its layer `middle`."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("first", nn.Linear(4, 4))
    model.add_module("norm", nn.BatchNorm1d(4))
    model.add_module("middle", Operation(function))
    model.add_module("last", nn.Linear(4, 2))
    return model


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 4, generator=generator), torch.randn(8, 2, generator=generator)


def find(
    model: nn.Module, batches: list[Any] | None = None, precision: Precision = FP32, **options: Any
) -> BadOperator:
    return find_first_bad(model, Supervised(nn.MSELoss()), batches or [batch()], precision, **options)


def half(x: Tensor) -> Tensor:
    wide = (x * 1000).half()
    return (wide @ wide.T[:, :4]).float()


FORWARD: list[tuple[str, Callable[[Tensor], Tensor], str, str]] = [
    ("float16 product", half, "aten::mm", "float16"),
    ("float16 cast", lambda x: (x * 1e6).half().float(), "aten::_to_copy", "float16"),
    ("log of 0", lambda x: (x * 0).log(), "aten::log", "float32"),
    ("division by 0", lambda x: x / (x * 0), "aten::div", "float32"),
    ("0 / 0 in place", lambda x: (x * 0).div_(x * 0), "aten::div_", "float32"),
    ("exp", lambda x: (x * 1000).exp(), "aten::exp", "float32"),
    ("root of a negative number", lambda x: (-x.abs() - 1).sqrt(), "aten::sqrt", "float32"),
    (
        "bfloat16 product",
        lambda x: ((x * 1e20).bfloat16() @ (x * 1e20).bfloat16().T).float()[:, :4],
        "aten::mm",
        "bfloat16",
    ),
    ("softmax of a row of -inf", lambda x: x.masked_fill(x < 1e9, -math.inf).softmax(-1), "aten::_softmax", "float32"),
]


@pytest.mark.parametrize(("function", "operator", "dtype"), [case[1:] for case in FORWARD], ids=[c[0] for c in FORWARD])
def test_an_operator_of_the_forward_pass_is_named(function: Any, operator: str, dtype: str) -> None:
    bad = find(network(function))
    assert (bad.where, bad.layer, bad.operator, bad.dtype) == ("forward", "middle", operator, dtype)
    assert bad.output is not None and bad.output.bad > 0 and bad.inputs
    if "softmax" not in operator:
        assert all(found.bad == 0 and math.isfinite(found.low) and found.low <= found.high for found in bad.inputs)
    lines = str(bad).splitlines()
    assert len(lines) == 3 and lines[0] == f"forward pass, micro-batch 0: {operator} in middle"


def test_the_ranges_are_those_of_the_tensors() -> None:
    seen: list[Tensor] = []

    def divide(x: Tensor) -> Tensor:
        zero = (x > 0).float()
        seen.extend((x.detach(), zero))
        return x / zero

    model = network(divide)
    bad = find(model)
    x, zero = seen
    assert [(found.name, found.shape, found.low, found.high) for found in bad.inputs] == [
        ("self", (8, 4), float(x.min()), float(x.max())),
        ("other", (8, 4), 0.0, 1.0),
    ]
    result = x / zero
    assert bad.output is not None and bad.output.bad == pytest.approx(float((~result.isfinite()).float().mean()))
    assert bad.output.high == float(result[result.isfinite()].max())


BACKWARD: list[tuple[str, Callable[[Tensor], Tensor], str]] = [
    ("root at 0", lambda x: (x * 0).sqrt(), "SqrtBackward0"),
    ("norm at 0", lambda x: x + (x * 0).pow(2).sum(-1, keepdim=True).sqrt(), "SqrtBackward0"),
    ("a branch not taken", lambda x: torch.where(x < 1e9, x, (x * 0).log() * 0), "LogBackward0"),
]


@pytest.mark.parametrize(("function", "node"), [case[1:] for case in BACKWARD], ids=[case[0] for case in BACKWARD])
def test_an_operator_of_the_backward_pass_is_named_with_the_layer_it_belongs_to(function: Any, node: str) -> None:
    bad = find(network(function))
    assert (bad.where, bad.layer) == ("backward", "middle") and bad.operator.endswith(f" of {node}")
    assert str(bad).startswith("backward pass, micro-batch 0: aten::") and len(str(bad).splitlines()) == 3


def test_a_bad_batch_is_named_with_its_tensor_and_its_number() -> None:
    inputs, targets = batch()
    spoiled = inputs.clone()
    spoiled[3, 2] = math.nan
    bad = find(network(torch.tanh), [(inputs, targets), {"inputs": spoiled, "targets": targets}])
    assert (bad.where, bad.layer, bad.micro_batch) == ("batch", "inputs", 1)
    assert bad.output is not None and bad.output.bad == pytest.approx(1 / 32)
    spoiled[3, 2] = math.inf
    assert find(network(torch.tanh), [(spoiled, targets)]).where == "batch"
    bad = find(network(torch.tanh), [{"inputs": spoiled, "targets": targets, "more": [object(), {"name": "x"}]}])
    assert (bad.where, bad.layer) == ("batch", "inputs")


def test_a_bad_weight_and_a_bad_buffer_are_named() -> None:
    model = network(torch.tanh)
    with torch.no_grad():
        model.get_parameter("last.weight")[1, 1] = math.inf
    bad = find(model)
    assert (bad.where, bad.layer) == ("weights", "last.weight") and "0.125 of it not finite" in str(bad)
    model = network(torch.tanh).eval()
    model.get_buffer("norm.running_var")[0] = math.nan
    assert (find(model).where, find(model).layer) == ("buffers", "norm.running_var")


def test_infinities_that_are_meant_are_not_blamed() -> None:
    """Masks of minus infinity end in a softmax; what is bad comes later."""

    def masked(x: Tensor) -> Tensor:
        scores = (x @ x.T).masked_fill(torch.ones(8, 8).triu(1).bool(), -math.inf)
        return (scores.softmax(-1) @ x * 0).log()

    bad = find(network(masked))
    assert (bad.layer, bad.operator) == ("middle", "aten::log")


def test_a_loss_that_overflows_outside_the_model_is_the_tasks_own() -> None:
    bad = find_first_bad(
        network(torch.tanh), Supervised(lambda y, t: (y - t).mul(1e30).square().mean()), [batch()], FP32
    )
    assert (bad.where, bad.layer, bad.operator) == ("forward", "", "aten::pow") and "the task's loss" in str(bad)


def test_float16_gradients_that_the_loss_scale_overflows_are_found() -> None:
    model = network(lambda x: x.half().float())
    assert not find(model).found
    bad = find(model, loss_scale=2.0**30)
    assert (bad.where, bad.layer, bad.dtype) == ("backward", "middle", "float16")


def test_a_norm_that_overflows_while_all_gradients_are_finite() -> None:
    bad = find(network(lambda x: x * 1e18))
    assert bad.where == "norm" and bad.layer.endswith("weight") and bad.inputs[0].bad == 0


@pytest.mark.parametrize("kind", ["AdamW", "fused", "Muon"])
def test_an_update_that_divides_0_by_0_is_tried_and_taken_back(kind: str) -> None:
    """AdamW without epsilon, where the gradient of a layer has always been 0."""
    model = network(lambda x: (x * 1e6).tanh())
    settings: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95)}
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), eps=0.0, fused=kind == "fused", **settings)
    if kind == "Muon":
        matrices, others = [model.get_parameter("last.weight")], list(model.get_submodule("first").parameters())
        optimizer = MuonAdamW(matrices, others, **settings)
        for group in optimizer.param_groups[1:]:
            group["eps"] = 0.0
    before = snapshot(model, optimizer)
    for expected in (before, None):  # with empty states, and with states of an earlier step
        bad = find(model, optimizer=optimizer)
        assert (bad.where, bad.layer) == ("update", "first.weight") and bad.operator.startswith("aten::")
        assert expected is None or same(expected, snapshot(model, optimizer))
        spoil_states(model, optimizer)
        filled = snapshot(model, optimizer)
        assert len(filled) > len(before) and find(model, optimizer=optimizer).where == "update"
        assert same(filled, snapshot(model, optimizer))


def spoil_states(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Take a step with gradients of 0 and put the weights back: now the states hold zeros."""
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    model.load_state_dict(weights)


def test_an_update_that_overflows_is_found_unless_the_gradients_are_clipped() -> None:
    model = network(torch.tanh)
    optimizer = torch.optim.SGD(model.parameters(), lr=3e38)
    batches = [(batch()[0], batch()[1] * 100)]
    before = snapshot(model, optimizer)
    assert find(model, batches, optimizer=optimizer).where == "update"
    assert not find(model, batches, optimizer=optimizer, clip=make_small).found
    assert same(before, snapshot(model, optimizer))


def make_small(parameters: list[Tensor]) -> Tensor:
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad.mul_(1e-30)
    return torch.zeros(())


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> list[Any]:
    tensors = [tensor.clone() for tensor in model.state_dict().values()]
    if optimizer is not None:
        for group in optimizer.state.values():
            tensors += [torch.as_tensor(value).clone() for value in group.values()]
    return [*tensors, torch.get_rng_state()]


def same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_nothing_is_changed_and_the_random_numbers_are_those_of_the_step() -> None:
    """Dropout spoils exactly one element: only with the same random numbers it is found, or not."""
    model = network(lambda x: F.dropout(torch.full_like(x, 1.0), 0.5).sum().sub(16 * 2).reciprocal() + x)
    seed = next(seed for seed in range(1000) if dropped(seed) == 32.0)  # exactly half of the elements stay
    seed_random(seed)
    state = random_state()
    seed_random(12345)
    parameter = model.get_parameter("last.weight")
    parameter.grad = torch.ones_like(parameter)
    before = snapshot(model)
    assert find(model, seed_state=state).operator == "aten::reciprocal"
    assert same(before, snapshot(model)) and bool((parameter.grad == 1).all())
    assert model.training and not model._forward_hooks and all(not m._forward_pre_hooks for m in model.modules())
    assert find(model, seed_state=random_state()).found == (dropped(12345) == 32.0)


def dropped(seed: int) -> float:
    torch.manual_seed(seed)
    return float(F.dropout(torch.ones(8, 4), 0.5).sum())


def test_a_finite_step_says_that_nothing_was_found() -> None:
    bad = find(network(torch.tanh))
    assert not bad.found and bad.where == "nowhere" and "compile: false" in str(bad)
    assert len(str(bad).splitlines()) == 3


@pytest.mark.parametrize("recompute", [False, True])
def test_a_layer_deep_in_a_language_model_is_named(recompute: bool) -> None:
    model = toy_gpt(gradient_checkpointing=recompute).train()
    name = next(
        name for name, module in reversed(list(model.named_modules())) if isinstance(module, nn.Linear) and "1" in name
    )
    with torch.no_grad():
        model.get_submodule(name).get_parameter("weight").fill_(3e38)
    bad = find_first_bad(model, LanguageModeling(), toy_batches(2), Precision("bf16", CPU))
    assert (bad.where, bad.layer, bad.dtype) == ("forward", name, "bfloat16") and bad.operator.startswith("aten::")


def test_a_bad_step_can_be_stored_and_run_again_elsewhere(tmp_path: Path) -> None:
    def function(x: Tensor) -> Tensor:
        return F.dropout(x, 0.5) + (x.sum() * 0).log()

    model = network(function)
    state = random_state()
    batches = [batch(), (batch()[0][:, :4], batch()[1])]
    bad = find(model, batches, seed_state=state)
    folder = save_bad_step(tmp_path, model, batches, state, bad, step=17, precision=FP32)
    assert sorted(path.name for path in folder.iterdir()) == ["batch.safetensors", "report.json", "weights.safetensors"]
    assert str(bad).splitlines()[0] in (folder / "report.json").read_text()
    other = network(function)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert replay(folder, other, Supervised(nn.MSELoss())) == bad
    assert same(snapshot(other), snapshot(model))
    with pytest.raises(CheckpointError, match="another model"):
        replay(folder, nn.Linear(4, 2), Supervised(nn.MSELoss()))


def test_folders_and_batches_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no bad step"):
        replay(tmp_path, network(torch.tanh), Supervised(nn.MSELoss()))
    with pytest.raises(DataError, match="can't be stored"):
        batches = [{"inputs": batch()[0], "targets": batch()[1], "what": object()}]
        save_bad_step(
            tmp_path, network(torch.tanh), batches, random_state(), BadOperator("nowhere"), step=1, precision=FP32
        )
    assert list(tmp_path.iterdir()) == []
