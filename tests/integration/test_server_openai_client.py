"""OpenAI's own Python client against the server: what it sends is understood, what it gets it can read."""

from __future__ import annotations

import pytest

from deepseek.serve import BackgroundServer
from tests.fake_serving import FakeModel

openai = pytest.importorskip("openai", reason="the openai package is not installed")


@pytest.fixture(scope="module")
def server():
    with BackgroundServer({"hello": FakeModel("Hello there. ", end=True, max_length=128)}, api_key="k-1") as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="k-1", max_retries=0) as made:
        yield made


def test_models(client):
    assert [model.id for model in client.models.list()] == ["hello"]
    assert client.models.retrieve("hello").id == "hello"


def test_chat(client):
    answer = client.chat.completions.create(
        model="hello",
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        temperature=0.7,
        top_p=0.9,
        max_completion_tokens=50,
        seed=1,
        stop=["zzz"],
        presence_penalty=0,
        user="someone",
        extra_body={"top_k": 40, "repetition_penalty": 1.2},
    )
    choice = answer.choices[0]
    assert choice.message.content == "Hello there. "
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streamed_chat(client):
    stream = client.chat.completions.create(
        model="hello",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello there. "
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == 14


def test_the_clients_streaming_helper(client):
    with client.chat.completions.stream(model="hello", messages=[{"role": "user", "content": "hi"}]) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "Hello there. "


def test_completions_whole_and_streamed(client):
    whole = client.completions.create(model="hello", prompt="x", max_tokens=5)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("Hello", "length")
    stream = client.completions.create(model="hello", prompt="x", max_tokens=5, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "Hello"


def test_errors_are_the_clients_own_kinds(client, server):
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model="hello", prompt="x", temperature=5)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="hello", prompt="x" * 500)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="x")
    stranger = openai.OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_a_failure_in_a_stream_reaches_the_caller(server):
    model = FakeModel("fine ")
    model.fail_at = 3
    with BackgroundServer({"m": model}) as broken:
        client = openai.OpenAI(base_url=broken.url + "/v1", api_key="-", max_retries=0)
        with client, pytest.raises(openai.APIError, match="log has the details"):
            list(client.completions.create(model="m", prompt="x", stream=True))


def test_leaving_a_stream_frees_the_cache(server):
    model = FakeModel(step_seconds=0.002)
    with BackgroundServer({"m": model}) as slow:
        with openai.OpenAI(base_url=slow.url + "/v1", api_key="-") as client:
            stream = client.completions.create(model="m", prompt="x", max_tokens=4000, stream=True)
            next(iter(stream))
            stream.close()
        engine = slow.service.hosted["m"].engine
        while model.open:
            pass
        assert engine.stats().generated_tokens < 4000


def test_the_asynchronous_client(server):
    import asyncio

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="k-1", max_retries=0) as client:
            answers = [client.completions.create(model="hello", prompt="x" * size) for size in range(1, 9)]
            return [answer.choices[0].text for answer in await asyncio.gather(*answers)]

    assert asyncio.run(ask()) == ["Hello there. "] * 8


def test_embeddings_log_probabilities_and_json_answers(client):
    vectors = client.embeddings.create(model="hello", input=["ab", "xyz"])  # the client asks for base64 by itself
    plain = client.embeddings.create(model="hello", input=["ab", "xyz"], encoding_format="float")
    for one, other in zip(vectors.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    chat = client.chat.completions.create(
        model="hello",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=3,
        logprobs=True,
        top_logprobs=2,
    )
    told = chat.choices[0].logprobs.content
    assert [token.token for token in told] == ["H", "e", "l"]
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in told)
    text = client.completions.create(model="hello", prompt="x", max_tokens=3, logprobs=1)
    assert text.choices[0].logprobs.text_offset == [0, 1, 2]
    schema = {"name": "point", "schema": {"type": "object"}, "strict": True}
    answer = client.chat.completions.create(
        model="hello",
        messages=[{"role": "user", "content": "hi"}],
        response_format={"type": "json_schema", "json_schema": schema},
    )
    assert answer.choices[0].finish_reason == "stop"
