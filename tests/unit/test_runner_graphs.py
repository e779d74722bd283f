"""Recorded steps of one token a text: the tokens of plain steps in any company, fixed shapes, what is not recorded."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from deepseek.errors import ModelError
from deepseek.models.generation import SamplingConfig
from deepseek.nn import paged_attention as paged
from deepseek.nn.decode_attention import decode_attention
from deepseek.nn.paged_attention import paged_attention
from deepseek.serve.text.limits import EngineLimits
from deepseek.serve.text.paged_cache import page_shapes
from deepseek.serve.text.plan import Sampling, SequenceRun, StepPlan
from deepseek.serve.text.runner import PagedRunner
from deepseek.serve.text.step_graphs import FixedStep, page_sizes, text_sizes
from tests.paged_texts import GREEDY, Text, answer, toy

CPU = torch.device("cpu")
MODELS = {"gpt": {"max_length": 40}, "llama": {}, "deepseek_moe": {}}


class Recorder:
    """Stands in for CUDA's recording: what is played again is the same call on the same memory."""

    def __init__(self) -> None:
        self.recorded, self.played = 0, 0

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        step()

        def replay() -> None:
            self.played += 1
            step()

        return replay


def runner_of(model: Any, capture: Any = None, pages: int = 40, size: int = 4) -> PagedRunner:
    room = pages * size * sum(shape.bytes_per_token for shape in page_shapes(model, CPU))
    limits = EngineLimits(block_size=size, kv_bytes=room, max_active=6)
    runner = PagedRunner(model, limits, model.config.vocab_size, CPU, capture)
    runner.warm_up()
    return runner


@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize(("seed", "pages"), [(0, 400), (1, 400), (2, 180)])  # the last one has no room for all sizes
def test_answers_are_those_of_plain_steps_under_random_arrivals_and_ends(kind: str, seed: int, pages: int) -> None:
    model, chance, recorder = toy(kind, **MODELS[kind]), random.Random(seed), Recorder()
    drawn = SamplingConfig(temperature=0.9, top_k=20, seed=seed)
    asked = [[chance.randrange(model.config.vocab_size) for _ in range(chance.randint(1, 20))] for _ in range(6)]
    ways = [GREEDY if number % 2 else Sampling(drawn, logprobs=2) for number in range(6)]
    found, wanted = (
        answer(runner, [Text(n, prompt, ways[n]) for n, prompt in enumerate(asked)], 9, random.Random(seed + 9))
        for runner in (runner_of(model, recorder, pages, 1), runner_of(model, None, pages, 1))
    )
    assert found == wanted
    sizes = itertools.product(text_sizes(6), page_sizes(model.config.max_length))
    assert recorder.recorded == sum(texts * longest < pages for texts, longest in sizes)
    assert recorder.played > 5  # else this compares plain steps with plain steps


def test_padding_writes_into_the_page_that_no_text_has() -> None:
    model = toy("llama")
    runner = runner_of(model, Recorder(), pages=70)
    assert runner.num_blocks == 69
    keys = runner._cache.keys[0]
    keys.fill_(7.0)
    runs = tuple(SequenceRun(n, [5], 5, [n, n + 3], [1] * 5 + [5], GREEDY) for n in range(3))  # padded to 4 texts
    runner.logits(StepPlan(runs))
    changed = (keys != 7.0).flatten(2).any(-1).nonzero().tolist()
    assert changed == [[3, 1], [4, 1], [5, 1], [69, 0]]


def test_prompts_and_steps_with_one_are_not_played() -> None:
    recorder, tokens = Recorder(), [1, 2, 3]
    runner = runner_of(toy("gpt"), recorder)
    piece = SequenceRun(0, [1], 0, [0], tokens, None)
    whole, other = SequenceRun(0, tokens, 0, [0], tokens, GREEDY), SequenceRun(1, [1], 0, [1], [1], GREEDY)
    for runs in ((whole,), (piece,), (piece, other)):
        runner.run(StepPlan(runs))
    assert recorder.played == 0
    runner.run(StepPlan((SequenceRun(1, [4], 1, [1], [1, 4], GREEDY),)))
    assert recorder.played == 1


@pytest.mark.parametrize(("kind", "fixed"), [("gpt", True), ("llama", True), ("deepseek_moe", False)])
def test_what_is_recorded_looks_at_no_number(monkeypatch: pytest.MonkeyPatch, kind: str, fixed: bool) -> None:
    """The checks of ids, which are made on a CPU alone, are left out here as on CUDA."""

    def looked(tensor: torch.Tensor) -> Any:
        raise ModelError("a look that passes by torch's dispatcher on a CPU")

    def capture(step: Callable[[], None]) -> Callable[[], None]:
        with FixedStep(), monkeypatch.context() as patch:
            for name in ("tolist", "numpy", "cpu"):
                patch.setattr(torch.Tensor, name, looked)
            step()
        return step

    monkeypatch.setattr(paged, "fits", lambda pages: False)  # our kernel is for the CPU
    monkeypatch.setattr(f"deepseek.models.{kind}.check_text", lambda *args: None)
    assert (runner_of(toy(kind, **MODELS[kind]), capture)._graphs is not None) == fixed


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 1],
        lambda x: x.nonzero(),
        lambda x: x.to("meta"),  # another device
        lambda x: bool((x > 1).any()),
    ],
)
def test_looks_are_refused(look: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises(ModelError, match="can't be recorded"), FixedStep():
        look(torch.arange(3.0))


def test_a_model_that_cannot_be_recorded_answers_plainly_and_one_warning_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(step: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    model, prompt = toy("llama"), [3, 1, 4]
    with caplog.at_level(logging.WARNING, "deepseek.serve"):
        runner = runner_of(model, refuse)
    assert [record.getMessage() for record in caplog.records] == [
        "steps of Llama can't be recorded, so each is computed call by call: "
        "operation not permitted when stream is capturing"
    ]
    assert answer(runner, [Text(0, prompt)], 6) == answer(runner_of(model), [Text(0, prompt)], 6)


@pytest.mark.parametrize(("heads", "kv_heads", "value_dim"), [(4, 4, 8), (6, 2, 8), (4, 1, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_fixed_shape_is_that_of_each_text(
    heads: int, kv_heads: int, value_dim: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(heads)
    keys, values = torch.randn(9, 4, kv_heads, 8).to(dtype), torch.randn(9, 4, kv_heads, value_dim).to(dtype)
    table, lengths = torch.tensor([[3, 1, 8], [5, 0, 0], [7, 2, 0]]), torch.tensor([11, 1, 8])
    query = torch.randn(3, heads, 8)
    wanted = paged_attention(query, keys, values, table, torch.tensor([0, 1, 2, 3]), lengths, 0.3)
    keys[5, 1:], values[8, 3] = torch.nan, torch.nan  # beyond the texts' lengths
    found = decode_attention(query, keys, values, table, lengths, 0.3)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_sizes_to_record() -> None:
    assert [text_sizes(most) for most in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
    assert [page_sizes(most) for most in (3, 16, 17, 300)] == [[3], [16], [16, 17], [16, 64, 256, 300]]
