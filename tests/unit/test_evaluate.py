"""Evaluation: loss and perplexity, and unigram and bigram models held against slow ones in plain Python."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.errors import DataError
from deepseek.evaluate import bigram_loss, bits_per_byte, measure_generation, perplexity, unigram_loss
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.tasks.task import mean_loss
from tests.toy_gpt import toy_batches, toy_gpt


def slow_unigram(train: list[int], vocab_size: int) -> list[float]:
    counts = Counter(train)
    return [(counts[token] + 1) / (len(train) + vocab_size) for token in range(vocab_size)]


def slow_bigram_loss(train: list[int], val: list[int], vocab_size: int) -> float:
    """Witten-Bell: P(b|a) = (c(a,b) + T(a) P(b)) / (c(a) + T(a)), T(a) the number of different tokens after a."""
    unigram = slow_unigram(train, vocab_size)
    pairs = Counter(zip(train, train[1:], strict=False))
    total = 0.0
    for a, b in zip(val, val[1:], strict=False):
        after = {second: count for (first, second), count in pairs.items() if first == a}
        seen, kinds = sum(after.values()), len(after)
        chance = (after.get(b, 0) + kinds * unigram[b]) / (seen + kinds) if seen else unigram[b]
        total -= math.log(chance)
    return total / (len(val) - 1)


tokens = st.lists(st.integers(0, 7), min_size=2, max_size=60)


@given(train=tokens, val=tokens, dtype=st.sampled_from([np.uint16, np.uint32, np.int64]))
def test_bigram_and_unigram_losses_are_those_of_plain_python(train: list[int], val: list[int], dtype: type) -> None:
    ours = bigram_loss(np.array(train, dtype), np.array(val, dtype), 8)
    assert ours == pytest.approx(slow_bigram_loss(train, val, 8), rel=1e-9)
    unigram = slow_unigram(train, 8)
    wanted = -sum(math.log(unigram[token]) for token in val) / len(val)
    assert unigram_loss(np.array(train, dtype), np.array(val, dtype), 8) == pytest.approx(wanted, rel=1e-9)


@given(train=tokens)
def test_the_chances_after_a_token_sum_to_one(train: list[int]) -> None:
    for first in range(8):
        chances = [math.exp(-bigram_loss(np.array(train), np.array([first, second]), 8)) for second in range(8)]
        assert sum(chances) == pytest.approx(1)


def test_a_bigram_model_beats_a_unigram_model_where_tokens_follow_each_other() -> None:
    random = np.random.default_rng(0)
    text = [0]
    for _ in range(5000):
        text.append((text[-1] * 3 + 1) % 50 if random.random() < 0.8 else int(random.integers(50)))
    train, val = np.array(text[:4000]), np.array(text[4000:])
    assert bigram_loss(train, val, 50) < unigram_loss(train, val, 50) - 1
    noise = random.integers(0, 50, 5000)
    assert bigram_loss(noise[:4000], noise[4000:], 50) > math.log(50) - 0.05


def test_a_large_vocabulary_does_not_overflow() -> None:
    ids = np.array([65535, 65534, 65535, 65534], dtype=np.uint16)
    assert bigram_loss(ids, ids, 1 << 20) == pytest.approx(
        -math.log((2 + 3 / (4 + (1 << 20))) / 3) * 2 / 3 - math.log((1 + 3 / (4 + (1 << 20))) / 2) / 3
    )


@pytest.mark.parametrize(("train", "val"), [([], [1, 2]), ([1], [1, 2]), ([1, 2], [1]), ([1, 2], [])])
def test_too_few_tokens_are_refused(train: list[int], val: list[int]) -> None:
    with pytest.raises(DataError, match="too few tokens"):
        bigram_loss(np.array(train, np.int64), np.array(val, np.int64), 4)


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    model, batches = toy_gpt(), toy_batches(3)
    found = perplexity(model, batches, LanguageModeling())
    assert found["val_loss"] == mean_loss(model, batches, LanguageModeling())
    assert found["perplexity"] == pytest.approx(math.exp(found["val_loss"]))


def test_bits_per_byte_do_not_depend_on_the_tokenizer() -> None:
    assert bits_per_byte(math.log(256), 10, 10) == pytest.approx(8)
    assert bits_per_byte(math.log(256) * 2, 5, 10) == pytest.approx(8)
    with pytest.raises(DataError, match="no text"):
        bits_per_byte(1.0, 1, 0)


def test_times_are_of_the_right_number_of_tokens_and_the_mode_is_kept() -> None:
    model = toy_gpt().train()
    calls: list[int] = []
    model.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0].shape[1]))
    found = measure_generation(model, [1, 2, 3], new_tokens=4, repeats=2)
    assert calls == [3, 1, 1, 1] * 3 and model.training
    times = found["token_ms"]
    assert 0 < times["p10"] <= times["median"] <= times["p90"] and found["prefill_ms"] > 0
