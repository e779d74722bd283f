"""Bundles as the server takes them: every kind of language model and of weights through the engine; what is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepseek.bundle import load, save
from deepseek.data.tokenizer import Tokenizer
from deepseek.errors import BundleError, RequestError
from deepseek.models.generation import SamplingConfig
from deepseek.quantization import QuantConfig, quantize_model
from deepseek.serve.text.engine import Done, Engine, EngineLimits, Event, Job, Piece, Ticket
from deepseek.serve.text.models import BundleModel
from deepseek.serve.text.paged_cache import page_shapes
from deepseek.serve.text.past_runner import PastRunner
from deepseek.serve.text.plan import StepPlan
from tests.paged_texts import Text, answer, toy

SIZES = {"gpt": {"max_length": 64}, "llama": {}, "deepseek_moe": {}, "lstm": {}, "transformer_xl": {}}
Saved = Callable[..., Path]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["The key is missing. A list of keys, and a copy of the list. " * 30], vocab_size=270)


@pytest.fixture(scope="module")
def saved(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder, known = tmp_path_factory.mktemp("bundles"), dict[str, Path]()

    def path(name: str, bits: int = 32) -> Path:
        if f"{name}{bits}" not in known:
            model = toy(name, vocab_size=280, **SIZES[name])
            model = model if bits == 32 else quantize_model(model, QuantConfig(weight_bits=bits))
            known[f"{name}{bits}"] = save(model, folder / f"{name}{bits}", tokenizer=tokenizer)
        return known[f"{name}{bits}"]

    return path


def served(model: BundleModel, prompts: list[list[int]], **limits: Any) -> list[str]:
    """Return the texts of greedy answers, all asked for at once."""
    engine = Engine(model, EngineLimits(block_size=4, kv_bytes=1 << 18, **limits))
    inboxes: list[list[Event]] = [[] for _ in prompts]
    for prompt, inbox in zip(prompts, inboxes, strict=True):
        engine.submit([Job(prompt, SamplingConfig(temperature=0, max_new_tokens=9))], inbox.append)
    while engine.step():
        pass
    for inbox in inboxes:
        assert isinstance(inbox[-1], Done), inbox[-1]
    return ["".join(event.text for event in inbox if isinstance(event, Piece)) for inbox in inboxes]


def whole(plain: Any, tokenizer: Tokenizer, prompt: list[int]) -> str:
    """Return the greedy answer of the model alone."""
    found = plain.generate(
        torch.tensor([prompt]),
        max_new_tokens=9,
        logits_processor=[lambda ids, logits: logits.index_fill(1, torch.arange(270, 280), -torch.inf)],
    )
    return tokenizer.decode(found[0, len(prompt) :].tolist())


@pytest.mark.parametrize(
    ("name", "bits"),
    [(name, 32) for name in SIZES] + [(name, bits) for name in ("gpt", "llama", "deepseek_moe") for bits in (8, 4)],
)
def test_every_bundle_answers_in_company_as_alone(saved: Saved, tokenizer: Tokenizer, name: str, bits: int) -> None:
    model, chance = BundleModel.load(saved(name, bits), "cpu"), random.Random(1)
    model.verify()
    shared = tokenizer.encode("A copy of the list")
    prompts = [shared[: chance.randint(1, 9)] + [chance.randrange(270) for _ in range(3)] for _ in range(4)]
    prompts += [[*shared, 30], [*shared, 31]]
    together = served(model, prompts, max_batch_tokens=16)
    assert together == [served(model, [prompt])[0] for prompt in prompts]
    assert len(set(together)) > 1
    if bits == 32:
        plain = load(saved(name), device="cpu").model
        assert together == [whole(plain, tokenizer, prompt) for prompt in prompts]


@pytest.mark.parametrize(
    ("name", "seed"), [("gpt", 0), ("llama", 1), ("llama", 2), ("deepseek_moe", 3), ("lstm", 4), ("transformer_xl", 5)]
)
def test_answers_are_those_alone_under_random_arrivals_and_cancellations(
    saved: Saved, tokenizer: Tokenizer, name: str, seed: int
) -> None:
    """Few pages, so that answers also lose theirs for a while; small steps; texts that begin alike."""
    plain = load(saved(name), device="cpu").model
    model, chance = BundleModel.load(saved(name), "cpu"), random.Random(seed)
    limits = EngineLimits(block_size=4, max_active=4, max_batch_tokens=12)
    per_page = (
        1
        if name in ("lstm", "transformer_xl")
        else 4 * sum(s.bytes_per_token for s in page_shapes(load(saved(name)).model, CPU))
    )
    engine = Engine(model, limits.model_copy(update={"kv_bytes": 14 * per_page}))
    begin = [chance.randrange(270) for _ in range(9)]
    asked: list[tuple[list[int], list[Event]]] = []
    tickets: list[Ticket] = []
    while len(asked) < 14 or engine.stats().active or engine.stats().waiting:
        if len(asked) < 14 and chance.random() < 0.5:
            prompt = begin[: chance.randint(0, 9)] + [chance.randrange(270) for _ in range(chance.randint(1, 6))]
            asked.append((prompt, []))
            job = Job(prompt, SamplingConfig(temperature=0, max_new_tokens=9))
            tickets.append(engine.submit([job], asked[-1][1].append))
        if tickets and chance.random() < 0.05:
            chance.choice(tickets).cancel()
        engine.step()
    done = 0
    for prompt, events in asked:
        assert isinstance(events[-1], Done)
        alone, text = served(model, [prompt])[0], "".join(e.text for e in events if isinstance(e, Piece))
        assert alone == whole(plain, tokenizer, prompt)
        assert alone.startswith(text)
        assert events[-1].reason == "cancelled" or text == alone
        done += events[-1].reason != "cancelled"
    assert done > 5


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("name", list(SIZES))
def test_every_form_of_weights_is_served(saved: Saved, name: str, weights: Any) -> None:
    model = BundleModel.load(saved(name), "cpu")
    texts = served(model, [[5, 6, 7], [5]], weights=weights)
    assert len(texts) == 2
    model.verify()  # the samples were answered by the weights as they were saved


@pytest.mark.parametrize("name", ["lstm", "transformer_xl"])
def test_a_past_of_its_own_kind_is_read_in_any_pieces_and_again_after_a_new_beginning(saved: Saved, name: str) -> None:
    plain, chance = toy(name), random.Random(3)
    vocab_size = plain.config.vocab_size
    prompts = [[chance.randrange(vocab_size) for _ in range(n)] for n in (1, 7, 25)]

    def runner() -> PastRunner:
        return PastRunner(plain, EngineLimits(block_size=4), vocab_size, 64, CPU)

    together = answer(runner(), [Text(n, prompt) for n, prompt in enumerate(prompts)], 6, chance)
    for number, prompt in enumerate(prompts):
        whole = plain.generate(torch.tensor([prompt]), max_new_tokens=6)[0, len(prompt) :].tolist()
        assert together[number] == whole
        if name == "lstm":  # its pages were taken away: all is computed again
            assert answer(runner(), [Text(0, [*prompt, *whole[:3]])], 3)[0] == whole[3:]


def test_a_sequence_that_lost_its_past_or_got_it_from_others_is_read_from_its_history() -> None:
    plain = toy("lstm")
    runner = PastRunner(plain, EngineLimits(), plain.config.vocab_size, 64, CPU)
    text = Text(0, [1, 2, 3, 4, 5])
    text.done = 4  # a shared beginning, as the scheduler thinks
    pages = list(range(runner.num_blocks))
    found = runner.run(StepPlan((text.run(1, pages, 16),)))[0]
    assert found.token == int(plain(torch.tensor([text.history]))[0, -1].argmax())
    text.done = 2  # begun anew in the middle
    assert runner.run(StepPlan((text.run(3, pages, 16),)))[0].token == found.token


def test_damaged_weights_are_told_by_verify_even_after_they_took_another_form(saved: Saved) -> None:
    bundle = load(saved("gpt"), device="cpu")
    with torch.no_grad():
        for parameter in bundle.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model = BundleModel(bundle)
    model.runner(EngineLimits(kv_bytes=1 << 18, weights="bf16"))
    for _ in range(2):
        with pytest.raises(BundleError, match="golden"):
            model.verify()


def test_vectors_have_unit_length_and_are_the_mean_of_the_hidden_states(saved: Saved) -> None:
    model = BundleModel.load(saved("llama"), "cpu")
    plain: Any = load(saved("llama"), device="cpu").model
    prompts = [[1, 2, 3], [9], [1, 2, 3]]
    found = model.embed(prompts)
    model.runner(EngineLimits(kv_bytes=1 << 18))
    again = model.embed(prompts)
    for prompt, vector, later in zip(prompts, found, again, strict=True):
        with torch.no_grad():
            mean = plain.forward_features(torch.tensor([prompt]))[0].mean(0)
        assert vector == pytest.approx((mean / mean.norm()).tolist(), abs=1e-5)
        assert later == pytest.approx(vector, abs=1e-5)
    assert found[0] == found[2] != found[1]
    for wrong in ([], [0] * 65):
        with pytest.raises(RequestError, match="wrong length"):
            model.embed([wrong])


def test_the_fingerprint_is_that_of_the_files(saved: Saved, tokenizer: Tokenizer, tmp_path: Path) -> None:
    first = BundleModel.load(saved("gpt"), "cpu").fingerprint
    assert first == BundleModel.load(saved("gpt"), "cpu").fingerprint
    assert len(first) == 64
    assert int(first, 16) > 0
    assert first != BundleModel.load(saved("llama"), "cpu").fingerprint
    single = save(load(saved("gpt"), device="cpu").model, tmp_path / "one.pt", tokenizer=tokenizer)
    assert len(BundleModel.load(single, "cpu").fingerprint) == 64


def test_tokens_are_told_as_text_and_as_bytes(saved: Saved, tokenizer: Tokenizer) -> None:
    model = BundleModel.load(saved("gpt"), "cpu")
    assert (model.token_text(tokenizer.eos_id), model.token_bytes(tokenizer.eos_id)) == ("<|endoftext|>", b"")
    for index in tokenizer.encode("The key é"):
        assert model.token_bytes(index).decode("utf-8", "replace") == model.token_text(index)


def test_a_constraint_is_made_for_the_bundles_tokenizer_and_followed_by_its_engine(saved: Saved) -> None:
    model = BundleModel.load(saved("llama"), "cpu")
    engine, seen = Engine(model, EngineLimits(kv_bytes=1 << 18)), list[Event]()
    rule = model.constraint({"enum": ["left", "right"]})
    engine.submit([Job([5, 6], SamplingConfig(seed=1, max_new_tokens=30), constraint=rule)], seen.append)
    while engine.step():
        pass
    assert "".join(event.text for event in seen if isinstance(event, Piece)) in ('"left"', '"right"')
    assert isinstance(seen[-1], Done)
    assert seen[-1].reason == "stop"
    with pytest.raises(RequestError, match="JSON schema"):
        model.constraint({"type": "foo"})


def test_a_model_that_cannot_go_on_with_a_text_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = save(toy("bert-masked-lm", vocab_size=280), tmp_path / "bert", tokenizer=tokenizer)
    with pytest.raises(BundleError, match="goes on with a text"):
        BundleModel.load(path, "cpu")
