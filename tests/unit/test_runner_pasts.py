"""Texts of LSTM, Transformer-XL and mixtures of experts side by side, with prepared weights: to the bit as alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepseek.models.generation import GenerationMixin
from deepseek.nn import row_products
from deepseek.nn.row_experts import RowExperts, RowGatedFeedForward, RowLatentUp, RowRouter
from deepseek.serve.text.limits import EngineLimits
from deepseek.serve.text.memories import Memories
from deepseek.serve.text.past_runner import PastRunner, Pasts, pasts_of
from deepseek.serve.text.places import Places
from deepseek.serve.text.weights import WeightForm, prepare_weights
from tests.paged_texts import Text, answer, toy

CPU = torch.device("cpu")
LONG = 64
KINDS: dict[str, dict[str, Any]] = {
    "lstm": {},
    "transformer_xl": {"memory_length": 9},
    "transformer_xl-long": {"memory_length": 70, "pre_norm": True},
    "transformer_xl-none": {"memory_length": 0},
}


def model_of(kind: str) -> Any:
    return toy(kind.partition("-")[0], **KINDS[kind])


def logits(pasts: Pasts, tokens: list[list[int]], chance: random.Random) -> list[list[Tensor]]:
    """Return the logits behind each text's first 20 tokens and every one after, read by lot who is in a step."""
    rows: list[list[Tensor]] = [[] for _ in tokens]
    while any(len(found) < 13 for found in rows):
        asked = [n for n, found in enumerate(rows) if len(found) < 13 and chance.random() < 0.7]
        if not asked:
            continue
        pieces = [tokens[n][19 + len(rows[n])] if rows[n] else tokens[n][:20] for n in asked]
        found = pasts.read(asked, [piece if isinstance(piece, list) else [piece] for piece in pieces])
        for n, row in zip(asked, found, strict=True):
            rows[n].append(row)
    return rows


@pytest.mark.parametrize("form", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("kind", list(KINDS))
@torch.inference_mode()
def test_logits_of_texts_side_by_side_are_those_of_each_alone(kind: str, form: WeightForm) -> None:
    if row_products.library() is None:
        pytest.skip("no compiler")
    model, chance = prepare_weights(model_of(kind), form), random.Random(4)
    tokens = [[chance.randrange(48) for _ in range(40)] for _ in range(10)]
    together = logits(pasts_of(model, LONG, CPU), tokens, chance)
    for text, rows in zip(tokens, together, strict=True):
        alone = logits(pasts_of(model, LONG, CPU), [text], chance)[0]
        assert all(torch.equal(row, other) for row, other in zip(rows, alone, strict=True))


@pytest.mark.parametrize("kind", list(KINDS))
def test_answers_longer_than_the_memory_are_those_of_the_model_alone(kind: str) -> None:
    model, chance = model_of(kind), random.Random(6)
    asked = [[chance.randrange(48) for _ in range(count)] for count in (1, 30, 9, 10, 3)]
    for plain in (True, False):
        served = model_of(kind) if plain else prepare_weights(model_of(kind), "fp32")
        runner = PastRunner(served, EngineLimits(block_size=4), 48, 200, CPU)
        together = answer(runner, [Text(n, prompt) for n, prompt in enumerate(asked)], 90, chance)
        whole = [
            model.generate(
                torch.tensor([prompt]),
                max_new_tokens=90,
                logits_processor=[lambda ids, scores: scores.index_fill(1, torch.arange(48, scores.shape[1]), -1e9)],
            )[0, len(prompt) :].tolist()
            for prompt in asked
        ]
        assert [together[n] for n in range(len(asked))] == whole


class Sums(GenerationMixin, nn.Module):
    """A model of somebody's own: it keeps the sum of its tokens, and names its remainder."""

    def new_cache(self, batch_size: int, capacity: int) -> list[Tensor]:
        return [torch.zeros(batch_size, dtype=torch.int64)]

    def forward(self, ids: Tensor, cache: list[Tensor]) -> Tensor:
        cache[0] = cache[0] + ids.sum(1)
        return nn.functional.one_hot(cache[0] % 48, 48).float()[:, None]


def test_a_model_of_another_kind_is_read_with_its_own_cache() -> None:
    runner = PastRunner(Sums(), EngineLimits(block_size=4), 48, 64, CPU)
    found = answer(runner, [Text(0, [1, 2, 3]), Text(1, [40, 9])], 3, random.Random(0))
    assert found == {0: [6, 12, 24], 1: [1, 2, 4]}


@pytest.mark.parametrize("form", ["fp32", "bf16", "int8", "int4"])
@torch.inference_mode()
def test_a_prepared_mixture_is_that_of_its_own_weights(form: WeightForm) -> None:
    """fp32 is the plain model; other forms are held against torch's products with the very same numbers."""
    plain, model = toy("deepseek_moe"), prepare_weights(toy("deepseek_moe"), form)
    kinds = [type(module) for module in model.modules()]
    if row_products.library() is None:
        pytest.skip("no compiler")
    assert [kinds.count(kind) for kind in (RowExperts, RowRouter, RowLatentUp, RowGatedFeedForward)] == [1, 1, 2, 2]
    for module in model.modules():
        if isinstance(module, RowExperts):
            experts = plain.blocks[1].feed_forward.experts
            for name in ("gate", "up", "down"):
                getattr(experts, name).copy_(getattr(module, name).dequantized_weight())
    x = torch.randn(7, 32)
    router = plain.blocks[1].feed_forward.router
    routing, found = router(x), model.blocks[1].feed_forward.router(x)
    assert torch.equal(routing.experts, found.experts)
    torch.testing.assert_close(found.weights, routing.weights)
    wanted = plain.blocks[1].feed_forward.experts(x, routing)[0]
    got = model.blocks[1].feed_forward.experts(x, routing)[0]
    near = {"fp32": 1e-5, "int8": 1e-3}.get(form, 0.02)
    assert float((got - wanted).norm() / wanted.norm()) < near
    for row in range(7):
        part = type(routing)(*(tensor[row : row + 1] for tensor in routing))
        assert torch.equal(got[row : row + 1], model.blocks[1].feed_forward.experts(x[row : row + 1], part)[0])


@torch.inference_mode()
def test_a_prepared_mixture_without_a_cache_and_with_one_is_the_plain_model() -> None:
    plain, model = toy("deepseek_moe"), prepare_weights(toy("deepseek_moe"), "fp32")
    ids = torch.randint(96, (2, 9))
    torch.testing.assert_close(model(ids), plain(ids), atol=1e-4, rtol=1e-4)
    cache = model.new_cache(2, 9)
    found = torch.cat([model(part, cache=cache) for part in ids.split([4, 1, 4], dim=1)], dim=1)
    torch.testing.assert_close(found, plain(ids), atol=1e-4, rtol=1e-4)


def test_a_short_text_takes_little_memory_and_a_long_one_no_more_than_it_looks_back() -> None:
    memories = Memories(model_of("transformer_xl-long"), LONG, CPU)
    sizes = []
    for tokens in ([3], list(range(40)) * 5):
        memories.read([0], [tokens])
        sizes.append(memories._memories[0].kept[0].shape[0])
    assert sizes == [64, LONG + 1]
    memories.forget(0)
    assert not memories._memories


def test_places_are_given_anew() -> None:
    places = Places()
    assert [places.of(text) for text in (7, 8, 9, 8)] == [(0, True), (1, True), (2, True), (1, False)]
    places.leave(7)
    places.leave(99)
    assert [places.of(text)[0] for text in (5, 6)] == [0, 3]
