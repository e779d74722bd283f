"""Whatever JSON comes in, a form comes out or a RequestError: nothing else, and nothing out of bounds."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.errors import RequestError
from deepseek.serve.rest.body import DEPTH_LIMIT, parse_json
from deepseek.serve.rest.schema import MAX_ANSWERS, NEUTRAL, ChatForm, CompletionForm, SamplingForm, parse

NAMES = sorted(
    CompletionForm.model_fields.keys() | ChatForm.model_fields.keys() | NEUTRAL.keys() | {"role", "content", "x"}
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)
BODIES = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), JSON, max_size=6)
LIKELY = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.text(max_size=3) | st.lists(st.text(max_size=2), max_size=20) | JSON,
        "messages": st.just([{"role": "user", "content": "x"}]) | JSON,
        "max_tokens": st.integers(-2, 20_000) | JSON,
        "temperature": st.floats(-1, 3) | JSON,
        "top_p": st.floats(-1, 2) | JSON,
        "top_k": st.integers(-1, 2_000_000) | JSON,
        "repetition_penalty": st.floats(0, 11) | JSON,
        "n": st.integers(-1, 10) | JSON,
        "seed": st.integers(-1, 2**64) | JSON,
        "stop": st.lists(st.text(max_size=3), max_size=18) | JSON,
        "stream": st.booleans() | JSON,
    },
)


def within_bounds(form: SamplingForm) -> bool:
    return (
        (form.max_tokens is None or 1 <= form.max_tokens <= 16384)
        and 0 <= form.temperature <= 2
        and 0 < form.top_p <= 1
        and 0 <= form.top_k <= 1_000_000
        and 0.1 <= form.repetition_penalty <= 10
        and all(math.isfinite(value) for value in (form.temperature, form.top_p, form.repetition_penalty))
        and (form.seed is None or 0 <= form.seed < 2**63)
        and 1 <= form.n <= 8
        and len(form.stop) <= 16
        and all(1 <= len(stop) <= 128 for stop in form.stop)
        and type(form.n) is int
    )


@given(BODIES | LIKELY, st.sampled_from([CompletionForm, ChatForm]))
def test_any_object_is_a_form_within_bounds_or_a_request_error_that_names_a_field(body, kind):
    try:
        form = parse(kind, body)
    except RequestError as error:
        assert error.status == 400
        assert error.field
        assert len(str(error)) < 1000
        str(error).encode("utf-8")
    else:
        assert within_bounds(form)
        if isinstance(form, CompletionForm):
            assert 1 <= len(form.prompt) * form.n <= MAX_ANSWERS


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_an_object_or_a_request_error(body):
    try:
        value = parse_json(body)
    except RequestError as error:
        assert error.status == 400
    else:
        assert isinstance(value, dict)
        json.dumps(value).encode("utf-8")


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=5))
def test_what_is_accepted_is_what_json_says(value):
    text = json.dumps(value)
    try:
        parsed = parse_json(text.encode())
    except RequestError:
        return
    assert json.dumps(parsed) == text


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("extra", [0, 1])
def test_the_depth_limit_is_exact_and_strings_do_not_count(opening, extra):
    closing = "]" if opening == "[" else "}"
    levels = DEPTH_LIMIT - 1 + extra
    body = '{"s": "[[[[\\"[[[[{{{{{{{{{{{{{{{{", "v": ' + opening * levels + "1" + closing * levels + "}"
    if extra:
        with pytest.raises(RequestError, match="levels deep"):
            parse_json(body.encode())
    else:
        parse_json(body.encode())


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_a_field_without_use_here_is_taken_at_its_neutral_values_only(name):
    for value in (*NEUTRAL[name], None):
        parse(CompletionForm, {"prompt": "x", name: value})
    with pytest.raises(RequestError) as error:
        parse(CompletionForm, {"prompt": "x", name: "something else"})
    assert error.value.field == name
