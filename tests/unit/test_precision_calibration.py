"""Operators that need float32: found in models made to need it, kept in it, and let go again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepseek.errors import ModelError
from deepseek.optim.calibration import Limits, find_fp32_operators, sensitivity_table
from deepseek.optim.fp32_modules import keep_fp32
from deepseek.optim.precision import Precision
from deepseek.tasks.language_modeling import LanguageModeling
from tests.toy_gpt import toy_batches, toy_gpt

CPU = torch.device("cpu")


class Phase(nn.Module):
    """Turns a large number into an angle: bfloat16 keeps nothing of it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cos(x.to(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype) * 3000)


class Blow(nn.Module):
    """Overflows float16 inside."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return (self.proj(x) * 40_000).square().sqrt() / 40_000


class Fade(nn.Module):
    """Its values are below what float16 can hold."""

    def forward(self, x: Tensor) -> Tensor:
        low = torch.float16 if torch.is_autocast_enabled("cpu") else x.dtype
        return (x * 1e-6).to(low) * 1e-4


class Body(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.parts = nn.ModuleList(parts)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.dropout(torch.stack([part(x) for part in self.parts]).sum(0))


class SumTask:
    def loss_sum(self, model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).float().sum()


def low(dtype: torch.dtype) -> Precision:
    precision = Precision("bf16", CPU)
    precision.dtype = dtype
    return precision


BATCHES = [torch.randn(4, 8, generator=torch.Generator().manual_seed(s)) for s in range(2)]


def test_a_module_that_loses_its_digits_is_found_and_the_others_are_not() -> None:
    model = Body(Phase(), nn.Linear(8, 8)).train()
    found = find_fp32_operators(model, SumTask(), BATCHES, low(torch.bfloat16))
    assert [operator.name for operator in found] == ["parts.0"]
    assert found[0].error > 0.05 and found[0].overflow == 0 and "error" in found[0].reason
    assert model.training and model.dropout.training and type(model.parts[0]) is Phase
    assert find_fp32_operators(model, SumTask(), BATCHES, Precision("fp32", CPU)) == []


def test_overflow_names_the_operator_inside() -> None:
    found = find_fp32_operators(Body(Blow()), SumTask(), BATCHES, low(torch.float16))
    assert [operator.name for operator in found] == ["parts.0"]
    assert found[0].overflow > 0 and found[0].error == float("inf")
    assert set(found[0].operators) <= {"mul", "pow"} and found[0].operators
    assert "overflow in" in found[0].reason


def test_values_that_become_zero_are_found() -> None:
    found = find_fp32_operators(Body(Fade()), SumTask(), BATCHES, low(torch.float16), Limits(error=2.0, flushed=0.5))
    assert [operator.name for operator in found] == ["parts.0"] and found[0].flushed > 0.5
    assert "become 0" in found[0].reason


def test_a_gpt_needs_nothing_in_bfloat16() -> None:
    found = find_fp32_operators(toy_gpt(), LanguageModeling(), toy_batches(2), Precision("bf16", CPU))
    assert found == []
    assert "none" in sensitivity_table(found)


def test_kept_modules_compute_in_float32_and_let_go() -> None:
    model = Body(Blow(), nn.Linear(8, 8))
    exact = model.eval()(BATCHES[0])
    with torch.autocast("cpu", torch.float16):
        assert not model(BATCHES[0]).isfinite().all()
    names = [operator.name for operator in find_fp32_operators(model, SumTask(), BATCHES, low(torch.float16))]
    state = list(model.state_dict())
    kept = keep_fp32(model, names)
    assert kept.names == ["parts.0"] and isinstance(model.parts[0], Blow)
    assert keep_fp32(model, names).names == []
    for same in (model, copy.deepcopy(model)):
        with torch.autocast("cpu", torch.float16):
            out = same(BATCHES[0])
            assert same.parts[0].proj(BATCHES[0]).dtype is torch.float16  # alone it is as before
        assert same.parts[0](BATCHES[0].half()).dtype is torch.float32
        torch.testing.assert_close(out.float(), exact, rtol=0.02, atol=0.02)
    assert list(model.state_dict()) == state
    kept.remove()
    assert type(model.parts[0]) is Blow and kept.names == []
    with pytest.raises(ModelError, match="parts.0"):
        keep_fp32(model, ["parts.9"])


def test_kept_modules_compile_whole() -> None:
    model = Body(Blow()).eval()
    kept = keep_fp32(model, ["parts.0"])
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(BATCHES[0]), model(BATCHES[0]))
    kept.remove()


def test_the_table_shows_what_was_found() -> None:
    found = find_fp32_operators(Body(Blow(), Phase()), SumTask(), BATCHES, low(torch.float16))
    lines = sensitivity_table(found).splitlines()
    assert lines[0].split() == ["module", "kind", "error", "overflow", "to", "0", "why"]
    assert [line.split()[:2] for line in lines[1:]] == [["parts.0", "Blow"], ["parts.1", "Phase"]]
