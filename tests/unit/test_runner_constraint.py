"""Answers bound to a JSON schema: whatever the model wants, the text is JSON of it; wrong schemas are refused."""

from __future__ import annotations

import json
import sys
from typing import Any

import jsonschema
import pytest
import torch

from deepseek.data.tokenizer import Tokenizer
from deepseek.errors import RequestError
from deepseek.models.generation import SamplingConfig
from deepseek.serve.text.constraint import Grammars
from deepseek.serve.text.plan import Sampling, SequenceRun
from deepseek.serve.text.sampler import Sampler

SCHEMAS: dict[str, dict[str, Any]] = {
    "record": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "kind": {"enum": ["cat", "dog", "鸟"]},
            "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        },
        "required": ["name", "age", "kind", "tags"],
        "additionalProperties": False,
    },
    "nested": {
        "type": "array",
        "minItems": 1,
        "maxItems": 2,
        "items": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/point"}]},
        "$defs": {
            "point": {
                "type": "object",
                "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 9}},
                "required": ["x"],
                "additionalProperties": False,
            }
        },
    },
    "pattern": {"type": "string", "pattern": "^[a-f]{2,5}-[0-9]{2}$"},
    "number": {"type": "integer", "minimum": 0, "maximum": 99},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(['{"name": "Ann", "age": 12, "tags": [true, false, null]} 猫狗鸟 ' * 30], vocab_size=285)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer)


def said(tokenizer: Tokenizer, grammars: Grammars, schema: dict[str, Any] | None, seed: int, most: int = 400) -> str:
    """Return what a model of noise says under the constraint; it ends by the grammar, or with the end of a document."""
    sampler, generator, history = Sampler(tokenizer.vocab_size), torch.Generator().manual_seed(seed), [5]
    sampling = Sampling(
        SamplingConfig(seed=seed, temperature=0 if seed % 3 == 0 else 1, top_k=20, repetition_penalty=1.1),
        constraint=grammars.json(schema),
    )
    for _ in range(most):
        logits = 4 * torch.randn(1, tokenizer.vocab_size + 7, generator=generator)
        found = sampler.sample(logits, [SequenceRun(0, history[-1:], len(history) - 1, [0], history, sampling)])[0]
        assert found.error is None
        assert found.token is not None
        if found.token == tokenizer.eos_id or found.token == tokenizer.end_id:
            assert found.finished
            break
        history.append(found.token)
        if found.finished:
            break
    else:
        pytest.fail("the answer did not end")
    return tokenizer.decode(history[1:], skip_special_tokens=False)


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_a_random_model_answers_in_the_schema(tokenizer: Tokenizer, grammars: Grammars, name: str) -> None:
    texts = {said(tokenizer, grammars, SCHEMAS[name], seed) for seed in range(40)}
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMAS[name])
    assert len(texts) > 5


def test_without_a_schema_the_answer_begins_an_object(tokenizer: Tokenizer, grammars: Grammars) -> None:
    sampler, sampling = Sampler(tokenizer.vocab_size), Sampling(SamplingConfig(), None, grammars.json(None))
    for seed in range(20):
        logits = torch.randn(1, tokenizer.vocab_size, generator=torch.Generator().manual_seed(seed))
        found = sampler.sample(logits, [SequenceRun(seed, [5], 0, [0], [5], sampling)])[0]
        assert tokenizer.token_bytes(found.token or 0).startswith(b"{")


def test_one_constraint_serves_answers_side_by_side_and_leaves_others_free(
    tokenizer: Tokenizer, grammars: Grammars
) -> None:
    constraint, sampler = grammars.json({"enum": ["left", "right"]}), Sampler(tokenizer.vocab_size)
    histories: list[list[int]] = [[5], [5], [5]]
    open_rows = {0, 1}
    generator = torch.Generator().manual_seed(4)
    while open_rows:
        logits = torch.randn(3, tokenizer.vocab_size, generator=generator)
        logits[2, 77] = 50.0
        runs = [
            SequenceRun(n, history[-1:], 0, [0], history, Sampling(SamplingConfig(temperature=0), None, rule))
            for n, (history, rule) in enumerate(zip(histories, (constraint, constraint, None), strict=True))
            if n in open_rows or n == 2
        ]
        for found in sampler.sample(logits[[run.sequence for run in runs]], runs):
            histories[found.sequence].append(found.token or 0)
            if found.finished:
                open_rows.discard(found.sequence)
    assert all(json.loads(tokenizer.decode(histories[n][1:])) in ("left", "right") for n in (0, 1))
    assert set(histories[2][1:]) == {77}


def test_logprobs_are_the_models_own_also_of_tokens_that_were_forbidden(
    tokenizer: Tokenizer, grammars: Grammars
) -> None:
    logits = torch.zeros(1, tokenizer.vocab_size)
    logits[0, 30] = 9.0
    sampling = Sampling(SamplingConfig(temperature=0), 1, grammars.json({"type": "boolean"}))
    run = SequenceRun(0, [5], 0, [0], [5], sampling)
    found = Sampler(tokenizer.vocab_size).sample(logits, [run])[0].logprob
    assert found is not None
    assert found.top[0][0] == 30
    assert found.logprob == pytest.approx(float(logits.log_softmax(-1)[0, found.token]))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "foo"},
        {"type": 5},
        {"properties": 5},
        {"$ref": "#"},
        {"$ref": "http://169.254.169.254/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"type": "string", "pattern": "("},
        {"type": "string", "enum": [1]},
        {"type": "integer", "minimum": float("nan")},
        {"type": "array", "uniqueItems": True},
    ],
)
def test_a_schema_that_cannot_be_followed_is_the_clients_error(grammars: Grammars, schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="the JSON schema can't be followed") as caught:
        grammars.json(schema)
    assert (caught.value.status, caught.value.field) == (400, "response_format")


def test_deep_and_large_schemas_are_refused_or_followed_but_never_crash(grammars: Grammars) -> None:
    for depth in (50, 100, 900, 5000):
        deep: dict[str, Any] = {"type": "integer"}
        for _ in range(depth):
            deep = {"type": "array", "items": deep}
        if depth > 100:
            with pytest.raises(RequestError):
                grammars.json(deep)
        else:
            grammars.json(deep)
    grammars.json({"type": "string", "maxLength": 10**9})
    grammars.json({"enum": [f"word {n}" for n in range(2000)]})


def test_without_the_library_the_client_is_told_so(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match="can't be bound to a JSON schema here") as caught:
        Grammars(tokenizer)
    assert caught.value.status == 501
    assert "deepseek-framework[serve]" in (caught.value.fix or "")
