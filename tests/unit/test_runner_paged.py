"""The paged runner: logits of the plain model in any order of pieces and any company; shared pages; sizes; errors."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

from deepseek.errors import ConfigError, ModelError
from deepseek.models.generation import SamplingConfig
from deepseek.nn import row_products
from deepseek.serve.text.decoder import RowDecoder
from deepseek.serve.text.limits import EngineLimits
from deepseek.serve.text.paged_cache import PagedCache, count_blocks, has_pages, page_shapes
from deepseek.serve.text.plan import Sampling, SequenceRun, StepPlan
from deepseek.serve.text.runner import PagedRunner
from deepseek.serve.text.weights import WeightForm, prepare_weights
from tests.paged_texts import GREEDY, Text, answer, toy

CPU = torch.device("cpu")
PAGES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16}
MODELS = {
    "gpt": {"max_length": 40},
    "llama": {},
    "llama-scaled": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "deepseek_moe": {},
}


@pytest.fixture(params=list(MODELS), scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    return toy(request.param.partition("-")[0], **MODELS[request.param])


def runner_of(model: Any, pages: int = 40, block_size: int = 4) -> PagedRunner:
    shapes = page_shapes(model, CPU)
    short = getattr(model.lm_head, "form", "fp32") != "fp32"  # a prepared model's pages are of half the size then
    room = pages * block_size * sum(shape.bytes_per_token for shape in shapes) // (2 if short else 1)
    limits = EngineLimits(block_size=block_size, kv_bytes=room)
    runner = PagedRunner(model, limits, model.config.vocab_size, CPU)
    assert runner.num_blocks == pages
    return runner


def prompts(model: Any, chance: random.Random, count: int) -> list[list[int]]:
    vocab_size = model.config.vocab_size
    return [[chance.randrange(vocab_size) for _ in range(chance.randint(1, 20))] for _ in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_logits_are_those_of_the_plain_model_in_any_pieces_and_company(model: Any, seed: int) -> None:
    chance = random.Random(seed)
    runner, pages = runner_of(model), list(range(40))
    chance.shuffle(pages)
    texts = [Text(number, prompt) for number, prompt in enumerate(prompts(model, chance, 4))]
    compared = 0
    while any(text.done < len(text.history) for text in texts):
        chosen = [text for text in texts if text.done < len(text.history) and chance.random() < 0.7]
        if not chosen:
            continue
        runs = tuple(text.run(chance.randint(1, 6), pages, 4) for text in chosen)
        logits = runner.logits(StepPlan(runs))
        wanted = [text for text, run in zip(chosen, runs, strict=True) if run.sampling is not None]
        assert len(logits) == len(wanted)
        for row, text in zip(logits, wanted, strict=True):
            with torch.no_grad():
                plain = model(torch.tensor([text.history[: text.done]]))[0, -1]
            torch.testing.assert_close(row, plain, atol=1e-4, rtol=1e-4)
            compared += 1
            if len(text.history) < 26:  # some decoding behind the prompt
                text.history.append(int(row.argmax()))
    assert compared > 12


@pytest.mark.parametrize("seed", range(3))
def test_greedy_answers_in_a_random_batch_are_those_alone(model: Any, seed: int) -> None:
    chance = random.Random(seed)
    asked = prompts(model, chance, 5)
    together = answer(runner_of(model), [Text(n, prompt) for n, prompt in enumerate(asked)], 8, chance)
    for number, prompt in enumerate(asked):
        alone = answer(runner_of(model), [Text(0, prompt)], 8)[0]
        assert together[number] == alone
        whole = model.generate(torch.tensor([prompt]), max_new_tokens=8)[0, len(prompt) :].tolist()
        assert alone == whole


@pytest.mark.parametrize("seed", range(3))
def test_seeded_answers_in_a_random_batch_are_those_alone(model: Any, seed: int) -> None:
    chance = random.Random(seed)
    config = SamplingConfig(temperature=0.8, top_k=20, top_p=0.9, repetition_penalty=1.2)
    asked = [(prompt, chance.randrange(99)) for prompt in prompts(model, chance, 5)]

    def text(number: int) -> Text:
        prompt, own = asked[number]
        return Text(number, prompt, Sampling(config.model_copy(update={"seed": own})))

    together = answer(runner_of(model), [text(number) for number in range(5)], 8, chance)
    assert all(together[number] == answer(runner_of(model), [text(number)], 8)[number] for number in range(5))


def test_a_piece_of_a_prompt_and_running_answers_share_a_step(model: Any) -> None:
    runner, first, second = runner_of(model), [3, 1, 4, 1, 5, 9, 2, 6], [2, 7]
    a = SequenceRun(0, first[:6], 0, [4, 2], first, None)
    b = SequenceRun(1, second, 0, [8], second, GREEDY)
    told = runner.run(StepPlan((a, b)))
    assert [one.sequence for one in told] == [1]
    longer = [*second, told[0].token or 0]
    c = SequenceRun(1, longer[2:], 2, [8], longer, GREEDY)
    d = SequenceRun(0, first[6:], 6, [4, 2], first, GREEDY)
    logits = runner.logits(StepPlan((c, d)))
    with torch.no_grad():
        for row, text in zip(logits, (longer, first), strict=True):
            torch.testing.assert_close(row, model(torch.tensor([text]))[0, -1], atol=1e-4, rtol=1e-4)


def test_a_text_goes_on_behind_pages_that_another_text_filled(model: Any) -> None:
    chance, runner = random.Random(5), runner_of(model)
    vocab_size = model.config.vocab_size
    shared = [chance.randrange(vocab_size) for _ in range(8)]  # two full pages
    first, second = [*shared, 1, 2, 3], [*shared, 4]
    a = runner.logits(StepPlan((SequenceRun(0, first, 0, [7, 3, 9], first, GREEDY),)))
    b = runner.logits(StepPlan((SequenceRun(1, [4], 8, [7, 3, 5], second, GREEDY),)))
    again = runner.logits(StepPlan((SequenceRun(2, [3], 10, [7, 3, 9], first, GREEDY),)))
    with torch.no_grad():
        torch.testing.assert_close(a[0], model(torch.tensor([first]))[0, -1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(b[0], model(torch.tensor([second]))[0, -1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again, a, atol=1e-4, rtol=1e-4)


def test_steps_whose_tokens_together_outgrow_one_text_are_right(model: Any) -> None:
    long = model.config.max_length
    runner = runner_of(model, pages=3 * -(-long // 16), block_size=16)
    asked = [[(7 * n + i) % model.config.vocab_size for i in range(long - 2)] for n in range(3)]
    together = answer(runner, [Text(n, prompt) for n, prompt in enumerate(asked)], 2)
    for number, prompt in enumerate(asked):
        assert together[number] == model.generate(torch.tensor([prompt]), max_new_tokens=2)[0, -2:].tolist()
    with pytest.raises(ModelError, match="max_length"):
        too_long = [0] * (long + 1)
        runner.logits(StepPlan((SequenceRun(9, too_long, 0, list(range(-(-len(too_long) // 16))), too_long, GREEDY),)))


def test_layers_in_place_of_the_up_projection_are_asked_for_their_weight() -> None:
    model = toy("deepseek_moe")
    ids = torch.randint(model.config.vocab_size, (1, 9))
    whole = model(ids)[0, -1]
    for block in model.blocks:
        block.attention.kv_up = nn.Sequential(block.attention.kv_up)
    tokens = ids[0].tolist()
    found = runner_of(model).logits(StepPlan((SequenceRun(0, tokens, 0, [1, 2, 3], tokens, GREEDY),)))
    torch.testing.assert_close(found[0], whole, atol=1e-4, rtol=1e-4)


def test_pages_are_as_many_as_their_bytes_allow_and_bounded_without() -> None:
    model = toy("llama")
    shapes = page_shapes(model, CPU)
    per_token = sum(shape.bytes_per_token for shape in shapes)
    cache = model.new_cache(1, 1)
    assert per_token == (cache.keys.numel() + cache.values.numel()) * 4
    assert count_blocks(EngineLimits(kv_bytes=per_token * 16 * 5 + 7), per_token, 64, CPU) == 5
    assert count_blocks(EngineLimits(max_active=3), per_token, 64, CPU) == 2 * 3 * 4
    with pytest.raises(ConfigError, match=f"at least kv_bytes = {per_token * 16} for 16 tokens"):
        count_blocks(EngineLimits(kv_bytes=per_token), per_token, 64, CPU)


def test_a_pruned_layer_has_pages_of_its_own_width() -> None:
    model = toy("gpt")
    layer = model.blocks[0].attention
    layer.num_heads, layer.qkv, layer.out = 1, nn.Linear(16, 24), nn.Linear(8, 16)
    assert [shape.heads for shape in page_shapes(model, CPU)] == [1, 2]
    tokens = [5, 4, 3, 2, 1]
    found = runner_of(model).logits(StepPlan((SequenceRun(0, tokens, 0, [6, 2], tokens, GREEDY),)))
    with torch.no_grad():
        torch.testing.assert_close(found[0], model(torch.tensor([tokens]))[0, -1], atol=1e-4, rtol=1e-4)


def test_latents_are_kept_once_and_narrow() -> None:
    shapes = page_shapes(toy("deepseek_moe"), CPU)
    assert [(shape.heads, shape.width, shape.parts) for shape in shapes] == [(1, 20, 1)] * 2
    cache = PagedCache(shapes, 3, 4, "cpu")
    assert cache.keys[0] is cache.values[0]


def test_pages_are_bfloat16_where_that_was_asked_for_and_answers_stay_near() -> None:
    model, tokens = toy("llama"), list(range(12))
    limits = EngineLimits(block_size=4, kv_bytes=1 << 16, weights="bf16")
    half, whole = (PagedRunner(model, one, 96, CPU) for one in (limits, limits.model_copy(update={"weights": "fp32"})))
    assert half.num_blocks == 2 * whole.num_blocks
    plan = StepPlan((SequenceRun(0, tokens, 0, [1, 2, 3], tokens, GREEDY),))
    found, wanted = half.logits(plan)[0], whole.logits(plan)[0]
    assert 0 < float((found - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize("kind", ["gpt", "llama", "llama-scaled"])
@pytest.mark.parametrize("form", ["fp32", "bf16", "int8"])
def test_a_prepared_model_in_two_calls_is_what_it_is_block_by_block(kind: str, form: WeightForm) -> None:
    if row_products.library() is None:
        pytest.skip("no compiler")
    model = prepare_weights(toy(kind.partition("-")[0], **MODELS[kind]), form)
    whole, blocks = runner_of(model, pages=40), runner_of(model, pages=40)
    assert isinstance(whole._decoder, RowDecoder) and whole._cache.keys[0].dtype == PAGES[form]
    blocks._decoder = None
    near = 1e-5 if form == "fp32" else 0.02  # block by block, the last norm is torch's
    chance = random.Random(1)
    texts, pages = [Text(number, prompt) for number, prompt in enumerate(prompts(model, chance, 4))], list(range(40))
    while any(text.done < len(text.history) for text in texts):
        runs = tuple(text.run(chance.randint(1, 6), pages, 4) for text in texts if text.done < len(text.history))
        found = whole.logits(StepPlan(runs))
        torch.testing.assert_close(found, blocks.logits(StepPlan(runs)), rtol=near, atol=near)
        asking = [run.sequence for run in runs if run.sampling is not None]
        for number, row in zip(asking, found, strict=True):
            if len(texts[number].history) < 26:
                texts[number].history.append(int(row.argmax()))


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_a_prepared_model_answers_in_a_batch_as_alone_and_refuses_foreign_tokens(kind: str) -> None:
    model = prepare_weights(toy(kind, **MODELS[kind]), "bf16")
    chance = random.Random(2)
    asked = prompts(model, chance, 5)
    together = answer(runner_of(model), [Text(n, prompt) for n, prompt in enumerate(asked)], 8, chance)
    assert [answer(runner_of(model), [Text(0, prompt)], 8)[0] for prompt in asked] == [together[n] for n in range(5)]
    for token in (-1, model.config.vocab_size):
        with pytest.raises(ModelError):
            runner_of(model).logits(StepPlan((SequenceRun(0, [token], 0, [0], [token], GREEDY),)))


def test_a_cache_without_a_step_or_with_documents_is_refused() -> None:
    model = toy("gpt")
    cache: Any = PagedCache(page_shapes(model, CPU), 2, 4, "cpu")
    with pytest.raises(ModelError, match="another number of tokens"):
        cache.positions(1, CPU)
    part = torch.zeros(1, 2, 1, 8)
    with pytest.raises(ModelError, match="begins with `begin`"):
        cache.attend(0, part, part, part)


def test_bfloat16_models_have_bfloat16_pages_and_near_answers() -> None:
    model, half = toy("llama"), toy("llama").bfloat16()
    assert {shape.dtype for shape in page_shapes(half, CPU)} == {torch.bfloat16}
    tokens = list(range(12))
    found = runner_of(half).logits(StepPlan((SequenceRun(0, tokens, 0, [1, 2, 3], tokens, GREEDY),)))
    wanted = model(torch.tensor([tokens]))[0, -1].detach()
    assert float((found[0].float() - wanted).norm() / wanted.norm()) < 0.05


def test_which_models_have_pages() -> None:
    assert has_pages(toy("gpt"))
    assert not has_pages(toy("lstm"))
    assert not has_pages(toy("transformer_xl"))
