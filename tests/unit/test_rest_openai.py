"""OpenAI's routes beside plain text: log probabilities, JSON answers, embeddings, sessions, a cache."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
import threading

import pytest

from deepseek.errors import RequestError
from deepseek.serve import Service, create_app
from deepseek.serve.rest.schema import Message
from tests.fake_serving import FakeModel
from tests.fake_tensor import FakeTensorModel, LoneInput
from tests.rest_client import client_of

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def client():
    with client_of({"say": FakeModel("né! ", end=True, max_length=256)}) as made:
        yield made


def sse(response):
    return [json.loads(line[6:]) for line in response.text.split("\n\n") if line.startswith("data: {")]


def test_log_probabilities_of_a_completion(client):
    body = {"prompt": "x", "max_tokens": 5, "logprobs": 2}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    told = choice["logprobs"]
    assert set(told) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert {len(told[name]) for name in told} == {5}
    assert all(value <= 0 and math.isfinite(value) for value in told["token_logprobs"])
    assert all(1 <= len(top) <= 2 for top in told["top_logprobs"])
    ends = [offset + len(token) for offset, token in zip(told["text_offset"], told["tokens"], strict=True)]
    assert [0, *ends[:-1]] == told["text_offset"]


def test_log_probabilities_of_a_chat(client):
    body = {**CHAT, "max_tokens": 5, "logprobs": True, "top_logprobs": 3}
    told = client.post("/v1/chat/completions", json=body).json()["choices"][0]["logprobs"]
    assert told["refusal"] is None
    assert bytes(byte for token in told["content"] for byte in token["bytes"]) == "né! ".encode()
    for token in told["content"]:
        assert set(token) == {"token", "logprob", "bytes", "top_logprobs"}
        assert len(token["top_logprobs"]) == 3
        assert token["token"].encode() == bytes(token["bytes"]) or len(token["bytes"]) == 1


def test_streamed_log_probabilities_are_the_same(client):
    whole = {**CHAT, "max_tokens": 5, "logprobs": True}
    told = client.post("/v1/chat/completions", json=whole).json()["choices"][0]["logprobs"]["content"]
    chunks = sse(client.post("/v1/chat/completions", json={**whole, "stream": True}))
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [token for part in parts if part for token in part["content"]] == told


def test_no_log_probabilities_unless_asked(client):
    for body in ({"prompt": "x"}, {"prompt": "x", "logprobs": False}, {"prompt": "x", "logprobs": None}):
        assert client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("wanted", "schema"),
    [
        ({"type": "json_object"}, None),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"schema": {"enum": [1]}, "strict": True}}, {"enum": [1]}),
    ],
)
def test_the_schema_reaches_the_model(wanted, schema):
    model = FakeModel("text ")
    seen = []
    make = model.constraint
    model.constraint = lambda given: seen.append(given) or make(given)
    with client_of({"say": model}) as client:
        answer = client.post("/v1/chat/completions", json={**CHAT, "response_format": wanted}).json()
        assert isinstance(json.loads(answer["choices"][0]["message"]["content"]), dict | list | int | str)
        plain = client.post("/v1/chat/completions", json={**CHAT, "response_format": {"type": "text"}, "max_tokens": 5})
        assert plain.json()["choices"][0]["message"]["content"] == "text "
    assert seen == [schema]


def test_a_schema_that_the_model_refuses_is_the_clients_to_mend():
    model = FakeModel("text ")

    def refuse(schema):
        raise RequestError("this schema can't be followed", field="response_format", found="a cycle")

    model.constraint = refuse
    with client_of({"say": model}) as client:
        body = {**CHAT, "response_format": {"type": "json_object"}}
        answer = client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_format")


def test_embeddings_as_numbers_and_as_base64(client):
    body = {"input": ["ab", "xyz"], "encoding_format": "float"}
    plain = client.post("/v1/embeddings", json=body).json()
    assert plain["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert [item["index"] for item in plain["data"]] == [0, 1]
    for item in plain["data"]:
        assert math.isclose(sum(value * value for value in item["embedding"]), 1, rel_tol=1e-5)
    packed = client.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()
    for one, other in zip(plain["data"], packed["data"], strict=True):
        raw = base64.b64decode(other["embedding"])
        assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(one["embedding"], abs=1e-6)
    lone = client.post("/v1/embeddings", json={"input": [97, 98]}).json()
    assert lone["data"][0]["embedding"] == plain["data"][0]["embedding"]


class Sessions:
    """Conversations in a dictionary."""

    def __init__(self):
        self.kept = {}

    async def load(self, session):
        return list(self.kept.get(session, []))

    async def append(self, session, messages):
        self.kept.setdefault(session, []).extend(messages)


def test_a_session_goes_on_and_forgets_the_oldest_turns_when_room_is_short():
    sessions = Sessions()
    model = FakeModel("ok. ", end=True, max_length=200)
    asked = []
    encode = model.encode_chat
    model.encode_chat = lambda messages: asked.append(list(messages)) or encode(messages)
    with client_of({"say": model}, sessions=sessions) as client:
        for turn in range(12):
            body = {"messages": [{"role": "user", "content": f"turn {turn}"}], "session_id": "s-1", "max_tokens": 8}
            if turn == 0:
                body["messages"].insert(0, {"role": "system", "content": "Be brief."})
            answer = client.post("/v1/chat/completions", json=body | {"stream": turn % 2 == 1})
            assert answer.status_code == 200
    kept = sessions.kept["s-1"]
    assert len(kept) == 1 + 2 * 12
    assert all(isinstance(message, Message) for message in kept)
    assert [message.content for message in kept if message.role == "assistant"] == ["ok. "] * 12
    last = asked[-1]
    assert last[0] == {"role": "system", "content": "Be brief."}
    assert last[-1] == {"role": "user", "content": "turn 11"}
    assert 3 < len(last) < len(kept)
    assert last[1]["role"] == "user"
    assert len(encode(last)) + 8 <= 200


def test_a_session_needs_sessions_and_one_answer(client):
    refused = client.post("/v1/chat/completions", json={**CHAT, "session_id": "s"}).json()["error"]
    assert (refused["param"], refused["message"][:30]) == ("session_id", "this server keeps no sessions;")
    several = client.post("/v1/chat/completions", json={**CHAT, "session_id": "s", "n": 2}).json()["error"]
    assert several["message"].startswith("'n' does not fit the rest; wanted 1 in a session")


class Cache:
    """Answers in a dictionary."""

    def __init__(self):
        self.kept = {}
        self.hits = 0

    async def get(self, key):
        self.hits += key in self.kept
        return self.kept.get(key)

    async def put(self, key, body):
        self.kept[key] = body


def test_only_answers_that_would_be_the_same_are_kept():
    cache = Cache()
    greedy = {"prompt": "x", "max_tokens": 4, "temperature": 0}
    with client_of({"say": FakeModel("abcdefgh")}, cache=cache) as client:

        def ask(**fields):
            body = {**greedy, **fields}
            return client.post("/v1/completions", json={k: v for k, v in body.items() if v is not None}).json()

        first, second = ask(), ask()
        assert (cache.hits, len(cache.kept)) == (1, 1)
        assert first["id"] != second["id"]
        assert {k: v for k, v in first.items() if k not in ("id", "created")} == {
            k: v for k, v in second.items() if k not in ("id", "created")
        }
        changes = [{"max_tokens": 5}, {"prompt": "y"}, {"stop": "d"}, {"n": 2}, {"logprobs": 1}, {"top_p": 0.5}]
        changes += [{"seed": 3, "temperature": 1}, {"seed": 4, "temperature": 1}, {"repetition_penalty": 1.2}]
        for change in changes:
            ask(**change)
        assert (cache.hits, len(cache.kept)) == (1, 1 + len(changes))
        ask(temperature=1.0)
        client.post("/v1/completions", json={**greedy, "stream": True})
        assert len(cache.kept) == 1 + len(changes)
        chat = {**CHAT, "max_tokens": 4, "temperature": 0}
        client.post("/v1/chat/completions", json=chat)
        assert len(cache.kept) == 2 + len(changes)


def test_predictions_are_kept_by_what_was_asked_not_by_the_id():
    cache = Cache()
    model, other = LoneInput(), LoneInput()
    other.fingerprint = "other"
    x = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    with client_of({"lone": model, "other": other, "three": FakeTensorModel()}, cache=cache) as client:

        def ask(name="lone", **fields):
            return client.post(f"/v2/models/{name}/infer", json={"inputs": [x], **fields})

        answers = [ask(), ask(id="ü"), ask(inputs=[{**x, "data": [[1.0, 2, 3, 4]]}])]
        assert (model.runs, cache.hits, len(cache.kept)) == (1, 2, 1)
        assert [answer.json().get("id") for answer in answers] == [None, "ü", None]
        assert len({json.dumps(answer.json()["outputs"]) for answer in answers}) == 1
        raw = [ask(parameters={"binary_data_output": True}, id=name) for name in ("a", "bcd")]
        for answer in raw:
            head = int(answer.headers["inference-header-content-length"])
            assert json.loads(answer.content[:head])["outputs"][0]["parameters"] == {"binary_data_size": 8}
            assert struct.unpack("<2f", answer.content[head:]) == (3, 7)
        assert model.runs == 2
        ask("other")
        assert other.runs == 1
        for _ in range(2):
            client.post("/v1/models/lone:predict", json={"instances": [[1, 2, 3, 4]]})
        assert model.runs == 3


def test_a_cache_that_holds_rubbish_is_asked_again():
    cache = Cache()
    with client_of({"lone": LoneInput()}, cache=cache) as client:
        x = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
        first = client.post("/v2/models/lone/infer", json={"inputs": [x]}).json()
        cache.kept = dict.fromkeys(cache.kept, b"?")
        assert client.post("/v2/models/lone/infer", json={"inputs": [x]}).json() == first


def test_an_answer_that_the_client_left_is_neither_kept_nor_remembered():
    cache, sessions = Cache(), Sessions()
    model = FakeModel("abc")
    service = Service({"say": model})
    app = create_app(service, cache=cache, sessions=sessions)
    service.start()
    service.verify()

    async def leave(body):
        """Send a request and be gone at once."""
        messages = [{"type": "http.request", "body": json.dumps(body).encode()}, {"type": "http.disconnect"}]
        sent = []

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        path = "/v1/chat/completions"
        headers = [(b"host", b"x"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": headers}
        await app({**scope, "query_string": b"", "root_path": ""}, receive, send)
        return sent

    try:
        for fields in ({"temperature": 0}, {"session_id": "s"}, {"session_id": "s", "stream": True}):
            model.may_step.clear()
            threading.Timer(0.05, model.may_step.set).start()
            assert asyncio.run(leave({**CHAT, "max_tokens": 4000, **fields}))[0]["status"] == 200
    finally:
        model.may_step.set()
        service.close()
    assert (cache.kept, sessions.kept) == ({}, {})
