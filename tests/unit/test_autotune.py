"""Choosing by measurement, with a clock that the test turns: what is chosen, what is remembered, what it may cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from deepseek.errors import ConfigError
from deepseek.nn import choices
from deepseek.nn.dot_product_attention import attention
from deepseek.optim.precision import Precision
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.train import autotune
from tests.toy_gpt import toy_batches, toy_gpt


class FakeStep:
    """A step whose passes take as long as `seconds` says for the option in force; it keeps what was in force."""

    def __init__(self, seconds: dict[str | None, float]) -> None:
        self.model: nn.Module = toy_gpt()
        self.task = LanguageModeling()
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.precision = Precision("fp32", torch.device("cpu"))
        self.seconds = seconds
        self.now = 0.0
        self.order: list[str | None] = []

    def backward(self, batches: Sequence[Any], items: int) -> float:
        assert items == 4 * 12
        option = choices.current("attention")
        self.order.append(option)
        # The first pass of an option takes longer, as if it were compiled; later ones jitter.
        self.now += self.seconds[option] * (10 if self.order.count(option) == 1 else 1 + 0.001 * len(self.order))
        return 0.0

    def clock(self) -> float:
        return self.now


def tune(step: FakeStep, folder: Path, **changes: Any) -> autotune.Tuned:
    settings = {"step_seconds": 1.0, "planned_seconds": 1e6, "folder": folder, "clock": step.clock}
    return autotune.tune(step, toy_batches(1), **{**settings, **changes})


def test_the_fastest_option_wins_and_all_are_timed_in_turns(tmp_path: Path) -> None:
    step = FakeStep({None: 1.0, "plain": 1.2, "fused": 0.8})
    tuned = tune(step, tmp_path)
    assert tuned.chosen == {"attention": "fused"} and "fused" in tuned.reason
    assert step.order[:6] == [None, "plain", "fused"] * 2 and len(step.order) == 12
    assert choices.current("attention") is None and tuned.seconds == pytest.approx(step.now)


def test_a_gain_within_the_noise_changes_nothing_and_is_remembered_too(tmp_path: Path) -> None:
    step = FakeStep({None: 1.0, "plain": 0.99, "fused": 1.0})
    assert tune(step, tmp_path).chosen == {}
    again = FakeStep({None: 1.0, "plain": 0.1, "fused": 0.1})
    assert tune(again, tmp_path).chosen == {} and not again.order


def test_what_was_measured_serves_the_next_run_of_the_same_shapes_alone(tmp_path: Path) -> None:
    tune(FakeStep({None: 1.0, "plain": 0.5, "fused": 2.0}), tmp_path)
    second = FakeStep({None: 1.0, "plain": 2.0, "fused": 0.5})
    tuned = tune(second, tmp_path, planned_seconds=1.0)  # too short to measure, but it costs nothing
    assert tuned.chosen == {"attention": "plain"} and not second.order and "before" in tuned.reason
    other = autotune.tune(
        second,
        toy_batches(1, batch_size=6, time=8),
        step_seconds=1.0,
        planned_seconds=1e6,
        folder=tmp_path,
        clock=second.clock,
    )
    assert other.chosen == {"attention": "fused"}
    assert tune(second, tmp_path, compile_seconds=5.0).chosen == {"attention": "fused"}
    assert len(list(tmp_path.glob("*.json"))) == 3


@pytest.mark.parametrize(
    ("planned", "compiling", "measured"), [(10_000.0, 0.0, True), (200.0, 0.0, False), (10_000.0, 200.0, False)]
)
def test_it_measures_only_where_the_run_is_long_enough(
    tmp_path: Path, planned: float, compiling: float, measured: bool
) -> None:
    step = FakeStep({None: 1.0, "plain": 0.5, "fused": 2.0})
    tuned = tune(step, tmp_path, planned_seconds=planned, compile_seconds=compiling)
    assert bool(step.order) == measured == bool(tuned.chosen)
    assert measured or "not measured" in tuned.reason


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format": 99, "choice": "attention", "option": "fused"}',
        '{"format": 1, "choice": "attention", "option": "magic"}',
        '{"format": 1, "choice": "attention", "option": ["fused"]}',
        "\x00\xff",
    ],
)
def test_a_damaged_cache_is_measured_anew(tmp_path: Path, text: str) -> None:
    tune(FakeStep({None: 1.0, "plain": 0.5, "fused": 2.0}), tmp_path)
    (file,) = tmp_path.glob("*.json")
    file.write_bytes(text.encode("latin-1"))
    step = FakeStep({None: 1.0, "plain": 2.0, "fused": 0.5})
    assert tune(step, tmp_path).chosen == {"attention": "fused"} and step.order
    assert json.loads(file.read_text())["option"] == "fused"


def test_a_cache_that_can_not_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    step = FakeStep({None: 1.0, "plain": 0.5, "fused": 2.0})
    assert tune(step, tmp_path / "file" / "below").chosen == {"attention": "plain"}
    assert "not kept" in caplog.text


def test_another_machine_measures_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune(FakeStep({None: 1.0, "plain": 0.5, "fused": 2.0}), tmp_path)
    here = autotune.machine()
    monkeypatch.setattr(autotune, "machine", lambda: {**here, "cpu": "another"})
    step = FakeStep({None: 1.0, "plain": 2.0, "fused": 0.5})
    assert tune(step, tmp_path).chosen == {"attention": "fused"}


def test_choices_are_in_force_within_a_block_and_checked() -> None:
    with choices.using({"attention": "fused"}):
        assert choices.state() == {"attention": "fused"}
        with pytest.raises(ZeroDivisionError), choices.using({"attention": "plain"}):
            _ = 1 / 0
        assert choices.current("attention") == "fused"
    assert choices.state() == {}
    with pytest.raises(ConfigError, match="attention"), choices.using({"atention": "plain"}):
        pass
    with pytest.raises(ConfigError, match="plain or fused"), choices.using({"attention": "fast"}):
        pass
    assert choices.known({"attention": "magic", "other": "plain"}) == {}
    assert choices.known({"attention": "plain"}) == {"attention": "plain"}


@pytest.mark.parametrize("option", ["plain", "fused"])
def test_attention_takes_the_chosen_way_and_computes_the_same(option: str) -> None:
    query, key, value = torch.randn(3, 2, 2, 5, 4).requires_grad_().unbind()
    expected = attention(query, key, value, causal=True)
    calls: list[Any] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(func)
            return func(*args, **(kwargs or {}))

    with choices.using({"attention": option}), Watch():
        found = attention(query, key, value, causal=True)
    assert (F.scaled_dot_product_attention in calls) == (option == "fused")
    torch.testing.assert_close(found, expected)


def test_compiled_code_notes_a_change_of_choice() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: attention(x, x, x), backend=backend)
    x = torch.randn(1, 2, 5, 4, requires_grad=True)
    for option in ("plain", "fused", "plain"):
        with choices.using({"attention": option}):
            compiled(x)
    torch._dynamo.reset()
    assert len(graphs) == 2
    assert ["scaled_dot_product" in " ".join(graph) for graph in graphs] == [False, True]
