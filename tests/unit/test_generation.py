"""Generation: the rules for the next token are exactly those of transformers, and texts end where they should."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepseek.errors import ConfigError, ModelError
from deepseek.models.generation import (
    SamplingConfig,
    keep_top_k,
    keep_top_p,
    next_token,
    penalize_repetition,
    stream_tokens,
)
from tests.toy_gpt import toy_gpt

logits_process = pytest.importorskip("transformers.generation.logits_process")


def some_logits(seed: int, ties: bool) -> Tensor:
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed)) * 3
    return logits.round() if ties else logits


@given(seed=st.integers(0, 1000), ties=st.booleans(), k=st.integers(1, 60))
def test_top_k_is_that_of_transformers(seed: int, ties: bool, k: int) -> None:
    logits = some_logits(seed, ties)
    assert torch.equal(keep_top_k(logits, k), logits_process.TopKLogitsWarper(k)(None, logits))


@given(seed=st.integers(0, 1000), ties=st.booleans(), p=st.floats(0.001, 0.999))
def test_top_p_is_that_of_transformers(seed: int, ties: bool, p: float) -> None:
    logits = some_logits(seed, ties)
    assert torch.equal(keep_top_p(logits, p), logits_process.TopPLogitsWarper(p)(None, logits))


@given(seed=st.integers(0, 1000), ties=st.booleans(), penalty=st.floats(0.1, 10))
def test_the_repetition_penalty_is_that_of_transformers(seed: int, ties: bool, penalty: float) -> None:
    logits = some_logits(seed, ties)
    ids = torch.randint(40, (3, 15), generator=torch.Generator().manual_seed(seed))
    theirs = logits_process.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    assert torch.equal(penalize_repetition(logits, ids, penalty), theirs)


def test_the_rules_come_in_the_order_of_transformers() -> None:
    logits, ids = some_logits(1, False), torch.randint(40, (3, 6))
    seen: list[Tensor] = []

    def watch(ids: Tensor, logits: Tensor) -> Tensor:
        seen.append(logits)
        return logits

    rules = [
        logits_process.RepetitionPenaltyLogitsProcessor(1.3),
        logits_process.TemperatureLogitsWarper(0.7),
        logits_process.TopKLogitsWarper(8),
        logits_process.TopPLogitsWarper(0.8),
    ]
    theirs = logits
    for rule in rules:
        theirs = rule(ids, theirs)
    sampling = SamplingConfig(temperature=0.7, top_k=8, top_p=0.8, repetition_penalty=1.3)
    wanted = torch.multinomial(theirs.softmax(-1), 1, generator=torch.Generator().manual_seed(9))[:, 0]
    found = next_token(logits, ids, sampling, torch.Generator().manual_seed(9), [watch])
    assert torch.equal(found, wanted)
    assert torch.equal(seen[0], rules[0](ids, logits))


def test_tokens_are_drawn_by_their_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]]).expand(20_000, 4)
    drawn = next_token(
        logits, torch.zeros(20_000, 1, dtype=torch.int64), SamplingConfig(), torch.Generator().manual_seed(0)
    )
    shares = torch.bincount(drawn, minlength=4) / 20_000
    torch.testing.assert_close(shares, logits[0].softmax(-1), atol=0.015, rtol=0)


PROMPT = torch.tensor([[3, 14, 15]])


def greedy_by_hand(model: torch.nn.Module, ids: Tensor, count: int) -> Tensor:
    for _ in range(count):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids


def test_greedy_text_is_that_of_the_model_asked_again_and_again() -> None:
    model = toy_gpt()
    wanted = greedy_by_hand(model, PROMPT, 10)
    assert torch.equal(model.generate(PROMPT, max_new_tokens=10), wanted)
    assert torch.equal(model.generate(PROMPT, do_sample=True, temperature=0.0, max_new_tokens=10), wanted)
    assert list(stream_tokens(model, PROMPT[0].tolist(), SamplingConfig(do_sample=False, max_new_tokens=10))) == (
        wanted[0, 3:].tolist()
    )


def test_rows_of_a_batch_are_independent_texts() -> None:
    model = toy_gpt()
    batch = torch.randint(48, (3, 5))
    together = model.generate(batch, max_new_tokens=8)
    for row in range(3):
        assert torch.equal(together[row : row + 1], model.generate(batch[row : row + 1], max_new_tokens=8))


def test_the_same_seed_gives_the_same_text_whatever_else_drew_numbers() -> None:
    model = toy_gpt()
    settings = {"do_sample": True, "max_new_tokens": 15}
    first = model.generate(PROMPT, seed=11, **settings)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(model.generate(PROMPT, seed=11, **settings), first)
    assert torch.equal(torch.get_rng_state(), state)
    texts = {tuple(model.generate(PROMPT, seed=seed, **settings)[0].tolist()) for seed in range(6)}
    unseeded = {tuple(model.generate(PROMPT, **settings)[0].tolist()) for _ in range(6)}
    assert len(texts) > 3 and len(unseeded) > 3


def test_sampling_from_one_token_is_greedy() -> None:
    model = toy_gpt()
    wanted = greedy_by_hand(model, PROMPT, 6)
    assert torch.equal(model.generate(PROMPT, do_sample=True, top_k=1, max_new_tokens=6), wanted)
    assert torch.equal(model.generate(PROMPT, do_sample=True, top_p=1e-6, max_new_tokens=6), wanted)


def test_a_text_ends_after_its_end_token_and_waits_for_the_others() -> None:
    model = toy_gpt()
    plain = greedy_by_hand(model, PROMPT, 12)[0, 3:].tolist()
    eos_id = plain[4]
    stop = plain.index(eos_id) + 1
    found = model.generate(PROMPT, max_new_tokens=12, eos_id=eos_id)
    assert found[0, 3:].tolist() == plain[:stop]
    streamed = stream_tokens(model, [3, 14, 15], SamplingConfig(do_sample=False, max_new_tokens=12, eos_id=eos_id))
    assert list(streamed) == plain[:stop]
    other = torch.tensor([[3, 14, 15], [1, 1, 2]])
    both = model.generate(other, max_new_tokens=12, eos_id=eos_id)
    assert both[0, 3 : 3 + stop].tolist() == plain[:stop]
    assert set(both[0, 3 + stop :].tolist()) <= {eos_id}


def test_the_samples_call_of_the_documents_works() -> None:
    from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

    model = toy_gpt()
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty=1.2)])
    outputs = model.generate(PROMPT, do_sample=True, top_k=40, top_p=0.9, logits_processor=processors)
    assert torch.equal(outputs[:, :3], PROMPT) and outputs.shape[1] == 24  # the context ends there
    settings = {"do_sample": True, "top_k": 40, "top_p": 0.9, "seed": 5}
    ours = model.generate(PROMPT, repetition_penalty=1.2, **settings)
    assert torch.equal(model.generate(PROMPT, logits_processor=processors, **settings), ours)


def test_without_a_length_the_context_is_filled_up_to_128_tokens() -> None:
    assert toy_gpt().generate(PROMPT).shape == (1, 24)
    assert toy_gpt(max_length=200).generate(PROMPT).shape == (1, 131)
    assert toy_gpt().generate(PROMPT, max_length=10).shape == (1, 10)


def test_the_mode_of_the_model_is_kept_and_dropout_is_off_while_it_writes() -> None:
    model = toy_gpt(dropout=0.5).train()
    first = model.generate(PROMPT, max_new_tokens=8)
    assert model.training and torch.equal(model.generate(PROMPT, max_new_tokens=8), first)
    with pytest.raises(ModelError):
        model.generate(PROMPT, max_new_tokens=100)
    assert model.training


def test_generation_works_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert toy_gpt().generate(PROMPT, max_new_tokens=4).shape == (1, 7)


@pytest.mark.parametrize(
    ("ids", "settings", "error", "words"),
    [
        (PROMPT, {"max_new_tokens": 22}, ModelError, "3 \\+ 22 tokens"),
        (torch.zeros(1, 24, dtype=torch.int64), {}, ModelError, "longer than the model's context"),
        (PROMPT, {"max_length": 3}, ModelError, "no room"),
        (PROMPT[:, :0], {}, ModelError, "prompt is empty"),
        (PROMPT[0], {}, ModelError, "wrong shape"),
        (PROMPT + 48, {}, ModelError, "does not know"),
        (-PROMPT, {}, ModelError, "ids -15 to -3"),
        (PROMPT, {"temprature": 1.0}, ConfigError, "did you mean 'temperature'"),
        (PROMPT, {"temperature": -1.0}, ConfigError, "greater than or equal to 0"),
        (PROMPT, {"temperature": float("nan")}, ConfigError, "temperature"),
        (PROMPT, {"top_p": 0.0}, ConfigError, "greater than 0"),
        (PROMPT, {"top_k": -1}, ConfigError, "top_k"),
        (PROMPT, {"repetition_penalty": 0.0}, ConfigError, "repetition_penalty"),
        (PROMPT, {"seed": -1}, ConfigError, "seed"),
        (PROMPT, {"max_new_tokens": 0}, ConfigError, "max_new_tokens"),
    ],
)
def test_what_cannot_be_generated_is_refused(
    ids: Tensor, settings: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        toy_gpt().generate(ids, **settings)


def test_streaming_refuses_at_once_and_stops_when_closed() -> None:
    model = toy_gpt()
    with pytest.raises(ModelError):
        stream_tokens(model, [], SamplingConfig())
    with pytest.raises(ModelError):
        stream_tokens(model, [1], SamplingConfig(max_new_tokens=24))
    with pytest.raises(ModelError, match="can't generate"):
        stream_tokens(torch.nn.Linear(2, 2), [1], SamplingConfig())
    tokens = stream_tokens(model, [1], SamplingConfig(max_new_tokens=20, seed=0))
    assert [next(tokens) for _ in range(3)]
    tokens.close()  # type: ignore[attr-defined]
    assert list(tokens) == []
