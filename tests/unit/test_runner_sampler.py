"""The batched sampler: each rule against `deepseek.models.generation`, distribution, seeds, logprobs, bad logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.models import generation
from deepseek.models.generation import SamplingConfig
from deepseek.serve.text.plan import Sampled, Sampling, SequenceRun
from deepseek.serve.text.sampler import Sampler, keep_top_k, keep_top_p

SETTINGS = st.builds(
    SamplingConfig,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 40]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    seed=st.integers(0, 5),
)


def run(number: int, sampling: Sampling, history: list[int] | None = None) -> SequenceRun:
    history = history or [0]
    return SequenceRun(number, history[-1:], len(history) - 1, [0], history, sampling)


def one(logits: Tensor, history: list[int] | None = None, sampler: Sampler | None = None, **values: object) -> Sampled:
    logprobs = values.pop("logprobs", None)
    sampling = Sampling(SamplingConfig(**values), logprobs)
    return (sampler or Sampler(logits.shape[-1])).sample(logits[None], [run(0, sampling, history)])[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(SETTINGS, min_size=1, max_size=6), st.integers(0, 1000))
def test_rows_are_sampled_in_a_batch_as_they_are_alone(configs: list[SamplingConfig], noise: int) -> None:
    generator = torch.Generator().manual_seed(noise)
    batch, alone = Sampler(300), [Sampler(300) for _ in configs]
    histories = [torch.randint(300, (5,), generator=generator).tolist() for _ in configs]
    for _ in range(3):
        logits = 3 * torch.randn(len(configs), 310, generator=generator)
        runs = [run(n, Sampling(config), histories[n]) for n, config in enumerate(configs)]
        together = batch.sample(logits, runs)
        for n, found in enumerate(together):
            assert found.token == alone[n].sample(logits[n : n + 1], [runs[n]])[0].token
            assert found.token is not None
            assert found.token < 300
            histories[n].append(found.token)


@settings(max_examples=60, deadline=None)
@given(SETTINGS, st.integers(0, 1000))
def test_what_may_be_chosen_is_what_generation_allows(config: SamplingConfig, noise: int) -> None:
    generator = torch.Generator().manual_seed(noise)
    logits, history = 2 * torch.randn(1, 50, generator=generator), torch.randint(50, (1, 9), generator=generator)
    allowed = logits.clone()
    if config.repetition_penalty != 1:
        allowed = generation.penalize_repetition(allowed, history, config.repetition_penalty)
    if config.greedy:
        wanted = {int(allowed.argmax())}
    else:
        allowed = allowed / config.temperature
        allowed = generation.keep_top_k(allowed, config.top_k) if config.top_k else allowed
        allowed = generation.keep_top_p(allowed, config.top_p) if config.top_p < 1 else allowed
        wanted = set(allowed[0].isfinite().nonzero()[:, 0].tolist())
    sampler = Sampler(50)
    drawing = config.model_copy(update={"seed": noise})
    found = {sampler.sample(logits, [run(0, Sampling(drawing), history[0].tolist())])[0].token for _ in range(40)}
    assert found <= wanted


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 1), st.integers(0, 400))
def test_the_limits_are_those_of_generation(noise: int, p: float, k: int) -> None:
    logits = 3 * torch.randn(2, 400, generator=torch.Generator().manual_seed(noise))
    kept = keep_top_k(logits, torch.tensor([k, 0]))
    assert torch.equal(kept[0], generation.keep_top_k(logits[:1], k)[0] if k else logits[0])
    assert torch.equal(kept[1], logits[1])
    found = keep_top_p(logits.softmax(-1), torch.tensor([p, 1.0], dtype=torch.float64))
    wanted = generation.keep_top_p(logits[:1], p)[0].isfinite()
    other = (found[0] > 0) != wanted  # float32 sums near p may be rounded either way
    assert int(other.sum()) <= 1 or float(logits[0].softmax(-1)[other].sum()) < 1e-5
    assert torch.equal(found[1], logits[1].softmax(-1))


def test_top_p_of_a_flat_distribution_looks_beyond_the_likeliest() -> None:
    probabilities = torch.linspace(1, 2, 5000).softmax(-1)[None]
    found = keep_top_p(probabilities, torch.tensor([0.5], dtype=torch.float64))
    assert float(found.sum()) == pytest.approx(0.5, abs=1e-3)
    assert int((found > 0).sum()) > 1000


@pytest.mark.parametrize(
    "values", [{}, {"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.7}, {"repetition_penalty": 1.5}]
)
def test_tokens_are_as_frequent_as_their_probabilities_say(values: dict[str, float]) -> None:
    logits = torch.tensor([1.0, 0.5, 0.0, -0.5, 2.0, -3.0, 1.5, 0.2])
    config = SamplingConfig(seed=3, **values)
    allowed = logits[None]
    if config.repetition_penalty != 1:
        allowed = generation.penalize_repetition(allowed, torch.tensor([[4, 6]]), config.repetition_penalty)
    allowed = allowed / config.temperature
    allowed = generation.keep_top_k(allowed, config.top_k) if config.top_k else allowed
    allowed = generation.keep_top_p(allowed, config.top_p) if config.top_p < 1 else allowed
    expected = allowed.softmax(-1)[0].numpy().astype(float)
    rounds, width = 100, 40
    sampler = Sampler(8)
    runs = [run(n, Sampling(config.model_copy(update={"seed": n})), [4, 6]) for n in range(width)]
    counts = np.zeros(8)
    for _ in range(rounds):
        for found in sampler.sample(logits.expand(width, 8), runs):
            counts[found.token] += 1
    total, possible = rounds * width, expected > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - total * expected)[possible] ** 2 / (total * expected[possible])).sum()
    assert chi_square < 24.3  # 7 degrees of freedom: exceeded once in 1000 seeds; this seed is fixed


def test_a_seed_goes_on_after_other_sequences_came_and_went() -> None:
    logits = torch.zeros(1, 1000)
    alone, busy = Sampler(1000), Sampler(1000)
    config = Sampling(SamplingConfig(seed=7))
    for step in range(150):  # more than are drawn at once
        other = run(100 + step, Sampling(SamplingConfig(seed=step)))
        wanted = alone.sample(logits, [run(0, config)])[0].token
        assert busy.sample(logits.expand(2, 1000), [other, run(0, config)])[1].token == wanted
        busy.release(100 + step)
    alone.release(0)
    first = Sampler(1000).sample(logits, [run(0, config)])[0].token
    assert alone.sample(logits, [run(0, config)])[0].token == first  # forgotten: from the beginning


def test_no_seed_is_another_text_each_time() -> None:
    logits = torch.zeros(100_000)
    assert len({one(logits).token for _ in range(5)}) > 1


def test_the_penalty_counts_the_whole_history_and_what_came_since() -> None:
    sampler, logits, history = Sampler(4), torch.tensor([[2.0, 1.9, 1.8, -1.0]]), [3]
    tokens = []
    for _ in range(3):
        sampling = Sampling(SamplingConfig(temperature=0, repetition_penalty=1.5))
        found = sampler.sample(logits, [run(0, sampling, history)])[0]
        tokens.append(found.token)
        history.append(found.token)
    assert tokens == [0, 1, 2]


@pytest.mark.parametrize("values", [{"temperature": 0}, {"seed": 1, "top_k": 2, "repetition_penalty": 2.0}])
def test_logprobs_are_the_models_before_any_rule(values: dict[str, float]) -> None:
    logits = torch.randn(60, generator=torch.Generator().manual_seed(1))
    found = one(logits, [5, 9], logprobs=4, **values).logprob
    assert found is not None
    wanted = logits.log_softmax(-1)
    assert found.logprob == pytest.approx(float(wanted[found.token]), abs=1e-6)
    assert [token for token, _ in found.top] == wanted.topk(4).indices.tolist()
    assert [value for _, value in found.top] == pytest.approx(wanted.topk(4).values.tolist(), abs=1e-6)
    assert one(logits, logprobs=0, **values).logprob.top == ()
    assert one(logits, **values).logprob is None


def test_logprobs_of_a_mixed_batch_stay_with_their_rows() -> None:
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(2))
    greedy = SamplingConfig(temperature=0)
    runs = [run(0, Sampling(greedy, 2)), run(1, Sampling(greedy)), run(2, Sampling(greedy, 5))]
    found = Sampler(18).sample(logits, runs)
    assert [one.logprob and len(one.logprob.top) for one in found] == [2, None, 5]
    assert math.isclose(
        sum(math.exp(value) for _, value in one(logits[2, :18], logprobs=18).logprob.top), 1, abs_tol=1e-5
    )
    assert found[2].logprob.logprob == pytest.approx(float(logits[2, :18].log_softmax(-1).max()), abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_without_numbers_fails_alone(bad: float) -> None:
    logits = torch.randn(4, 10)
    logits[1, 3] = logits[2, 3] = bad
    drawn, greedy = Sampling(SamplingConfig(seed=1, top_p=0.9, top_k=4)), Sampling(SamplingConfig(temperature=0), 2)
    found = Sampler(10).sample(logits, [run(0, greedy), run(1, greedy), run(2, drawn), run(3, drawn)])
    assert [isinstance(one.error, ModelError) for one in found] == [False, True, True, False]
    assert [one.token is None for one in found] == [False, True, True, False]


@pytest.mark.parametrize("temperature", [1e-4, 2.0])
def test_extreme_settings_give_a_token(temperature: float) -> None:
    logits = 50 * torch.randn(1000)
    assert one(logits, temperature=temperature, top_p=1e-300, seed=0).token == int(logits.argmax())
    assert one(logits, temperature=temperature, top_k=1 << 24, top_p=0.999, seed=0).error is None


def test_nothing_is_left_of_released_sequences() -> None:
    sampler = Sampler(10)
    for number in range(20):
        sampler.sample(torch.zeros(1, 10), [run(number, Sampling(SamplingConfig(repetition_penalty=2)))])
        sampler.release(number)
        sampler.release(number)
    assert sampler.remembered == 0
