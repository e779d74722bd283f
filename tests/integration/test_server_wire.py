"""OpenAI's wire form over real HTTP, with a model whose every word is known."""

from __future__ import annotations

import json
import re
import threading
import time

import httpx
import pytest

from deepseek.serve import BackgroundServer, ServerLimits
from tests.fake_serving import FakeModel


@pytest.fixture(scope="module")
def server():
    models = {
        "echo": FakeModel(max_length=512),
        "hello": FakeModel("Hello there. ", end=True),
        "wide": FakeModel("语言🙂 model ", max_length=64),
    }
    with BackgroundServer(models) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=30) as http:
        yield http


def sse(response: httpx.Response) -> list:
    """Return the payloads of a stream of server-sent events, which must be nothing but `data:` lines."""
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [block[6:] if block == "data: [DONE]" else json.loads(block[6:]) for block in blocks]


def test_a_completion_has_every_field_of_the_wire_form(client):
    answer = client.post("/v1/completions", json={"model": "echo", "prompt": "abc", "max_tokens": 6}).json()
    assert re.fullmatch(r"cmpl-[0-9a-f]{32}", answer.pop("id"))
    assert abs(answer.pop("created") - time.time()) < 60
    assert answer == {
        "object": "text_completion",
        "model": "echo",
        "choices": [{"text": "cba3cb", "index": 0, "logprobs": None, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9},
    }


def test_a_chat_answer_has_every_field_of_the_wire_form(client):
    body = {"model": "hello", "messages": [{"role": "user", "content": "hi"}]}
    answer = client.post("/v1/chat/completions", json=body).json()
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", answer.pop("id"))
    answer.pop("created")
    assert answer == {
        "object": "chat.completion",
        "model": "hello",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello there. ", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 14, "total_tokens": 23},
    }


def test_a_streamed_completion_is_the_same_text_in_pieces(client):
    body = {"model": "hello", "prompt": "x", "stream": True, "stream_options": {"include_usage": True}}
    response = client.post("/v1/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = sse(response)
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello there. "
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 13 + ["stop"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 1, "completion_tokens": 14, "total_tokens": 15}


def test_a_streamed_chat_opens_with_the_role_and_ends_with_the_reason(client):
    body = {"model": "hello", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    *chunks, done = sse(client.post("/v1/chat/completions", json=body))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert done == "[DONE]"
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[-1] == {}
    assert "".join(delta.get("content", "") for delta in deltas) == "Hello there. "
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in chunks)


def test_characters_of_several_tokens_are_never_cut_in_a_stream(client):
    body = {"model": "wide", "prompt": "x", "max_tokens": 17, "stream": True}
    *chunks, _ = sse(client.post("/v1/completions", json=body))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "语言🙂 model "


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_the_answer_before_them(client, stream):
    body = {"model": "hello", "prompt": "x", "stop": ["zzz", "there"], "stream": stream}
    response = client.post("/v1/completions", json=body)
    if stream:
        *chunks, _ = sse(response)
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        reason = chunks[-1]["choices"][0]["finish_reason"]
    else:
        text, reason = response.json()["choices"][0]["text"], response.json()["choices"][0]["finish_reason"]
    assert (text, reason) == ("Hello ", "stop")


def test_several_prompts_and_n_give_choices_in_order_and_seeds_of_their_own(client):
    body = {"model": "echo", "prompt": ["ab", "xyz"], "n": 2, "seed": 0, "max_tokens": 3}
    answer = client.post("/v1/completions", json=body).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == ["ba2", "a2b", "x3z", "3zy"]
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}


def test_several_streamed_answers_carry_their_index(client):
    body = {"model": "echo", "prompt": ["ab", "xy"], "max_tokens": 3, "stream": True}
    *chunks, _ = sse(client.post("/v1/completions", json=body))
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == ["ba2", "yx2"]


def test_a_prompt_may_be_token_ids(client):
    answer = client.post("/v1/completions", json={"model": "echo", "prompt": [97, 98, 99], "max_tokens": 4}).json()
    assert answer["choices"][0]["text"] == "cba3"
    both = client.post("/v1/completions", json={"model": "echo", "prompt": [[97], [98]], "max_tokens": 1}).json()
    assert [choice["text"] for choice in both["choices"]] == ["a", "b"]


def test_chat_content_may_be_text_parts(client):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    whole = {"model": "echo", "messages": [{"role": "user", "content": "ab"}], "max_tokens": 9}
    split = {"model": "echo", "messages": [{"role": "user", "content": parts}], "max_tokens": 9}
    texts = [
        client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
        for body in (whole, split)
    ]
    assert texts[0] == texts[1]


def test_ten_turns_of_a_conversation(client):
    messages = []
    for turn in range(10):
        messages.append({"role": "user", "content": str(turn)})
        answer = client.post("/v1/chat/completions", json={"model": "hello", "messages": messages}).json()
        messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
    assert answer["choices"][0]["message"]["content"] == "Hello there. "


def test_the_default_length_fits_what_is_left_of_the_context(client):
    answer = client.post("/v1/completions", json={"model": "wide", "prompt": "x" * 60}).json()
    assert answer["usage"] == {"prompt_tokens": 60, "completion_tokens": 4, "total_tokens": 64}


@pytest.mark.parametrize(
    ("fields", "param", "numbers"),
    [
        ({"prompt": "x" * 60, "max_tokens": 5}, "max_tokens", ["60", "5", "65", "64"]),
        ({"prompt": "x" * 64}, "prompt", ["64"]),
        ({"prompt": "x" * 5000}, "prompt", ["5000", "64"]),
    ],
)
def test_a_request_longer_than_the_context_is_told_the_numbers(client, fields, param, numbers):
    response = client.post("/v1/completions", json={"model": "wide", **fields})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, "context_length_exceeded")
    assert all(number in error["message"] for number in numbers)


def test_the_model_list_and_one_model(client):
    listed = client.get("/v1/models").json()
    assert [card["id"] for card in listed["data"]] == ["echo", "hello", "wide"]
    assert client.get("/v1/models/wide").json() == listed["data"][2]
    assert listed["data"][2]["max_length"] == 64


def test_health_and_ready(client):
    assert client.get("/health").json() == {"status": "alive"}
    assert client.get("/ready").json()["status"] == "ready"


def test_metrics_count_requests_tokens_and_times(client):
    client.post("/v1/completions", json={"model": "hello", "prompt": "x"})
    client.get("/nowhere")
    text = client.get("/metrics").text
    assert 'deepseek_requests_total{route="/v1/completions",status="200"}' in text
    assert 'deepseek_requests_total{route="other",status="404"}' in text
    assert re.search(r'deepseek_tokens_total\{kind="generated",model="hello"\} [1-9]', text)
    assert re.search(r'deepseek_time_to_first_token_seconds_count\{model="hello"\} [1-9]', text)
    assert re.search(r'deepseek_time_per_token_seconds_count\{model="hello"\} [1-9]', text)
    assert 'deepseek_queue_depth{model="hello"} 0.0' in text
    assert "deepseek_ready 1.0" in text


def test_every_reply_has_a_request_id_of_its_own(client):
    ids = {client.get(path).headers["x-request-id"] for path in ("/health", "/v1/models", "/nowhere", "/")}
    assert len(ids) == 4


def test_with_one_model_its_name_may_be_left_out_with_several_it_may_not(client):
    response = client.post("/v1/completions", json={"prompt": "x"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")
    with BackgroundServer({"only": FakeModel("yes ")}) as single:
        answer = httpx.post(single.url + "/v1/completions", json={"prompt": "x", "max_tokens": 4}).json()
    assert (answer["model"], answer["choices"][0]["text"]) == ("only", "yes ")


def test_requests_side_by_side_get_what_each_gets_alone(client, server):
    prompts = [f"prompt number {index}" for index in range(12)]
    alone = [post(server, prompt) for prompt in prompts]
    together: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda prompt=prompt: together.update({prompt: post(server, prompt)}))
        for prompt in prompts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[prompt] for prompt in prompts] == alone


def post(server: BackgroundServer, prompt: str) -> str:
    body = {"model": "echo", "prompt": prompt, "max_tokens": 40, "temperature": 0}
    return httpx.post(server.url + "/v1/completions", json=body, timeout=30).json()["choices"][0]["text"]


def test_a_full_queue_gets_429_at_once_and_recovers():
    model = FakeModel("x")
    model.may_step.clear()
    with BackgroundServer({"m": model}, limits=ServerLimits(max_active=1, max_queue=2)) as server:
        url, body = server.url + "/v1/completions", {"prompt": "a", "max_tokens": 1}
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(httpx.post(url, json=body, timeout=30).status_code))
            for _ in range(3)
        ]
        engine = server.service.hosted["m"].engine
        for count, thread in enumerate(threads):
            thread.start()
            wait_until(lambda count=count: sum(engine.stats()[:2]) == count + 1)
        refused = httpx.post(url, json=body)
        model.may_step.set()
        for thread in threads:
            thread.join()
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert statuses == [200, 200, 200]
        assert httpx.post(url, json=body).status_code == 200


def wait_until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_the_cache(stream):
    model = FakeModel(step_seconds=0.002)
    with BackgroundServer({"m": model}) as server:
        body = {"prompt": "abc", "max_tokens": 4000, "stream": stream}
        with httpx.Client(base_url=server.url) as client, pytest.raises(httpx.ReadTimeout):
            with client.stream("POST", "/v1/completions", json=body, timeout=0.3) as response:
                for _ in response.iter_raw():
                    if model.open:
                        raise httpx.ReadTimeout("the client leaves")
        wait_until(lambda: model.open == 0)
        assert server.service.hosted["m"].engine.stats().cancelled == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_crash_of_the_model_gives_500_with_an_id_and_no_details(stream, caplog):
    model = FakeModel("fine ")
    with BackgroundServer({"m": model}) as server:
        url, body = server.url + "/v1/completions", {"prompt": "a", "max_tokens": 5, "stream": stream}
        model.fail_at = 0
        broken = httpx.post(url, json=body)
        model.fail_at = None
        fine = httpx.post(url, json={**body, "stream": False})
    assert broken.status_code == 500
    assert "secret" not in broken.text
    assert broken.headers["x-request-id"] in broken.json()["error"]["message"]
    assert "secret detail of the crash" in caplog.text
    assert broken.headers["x-request-id"] in caplog.text
    assert fine.json()["choices"][0]["text"] == "fine "


def test_a_crash_in_the_middle_of_a_stream_ends_it_with_an_error_event(caplog):
    model = FakeModel("fine ")
    model.fail_at = 3
    with BackgroundServer({"m": model}) as server:
        response = httpx.post(server.url + "/v1/completions", json={"prompt": "a", "max_tokens": 5, "stream": True})
    *chunks, last = sse(response)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "fin"
    assert last["error"]["type"] == "server_error"
    assert "secret" not in response.text
    assert "secret detail of the crash" in caplog.text


def test_hundreds_of_requests_leave_no_thread_and_no_file_open(server):
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    with httpx.Client(base_url=server.url, timeout=30) as client:

        def ask(times: int) -> None:
            for index in range(times):
                body = {"model": "hello", "prompt": "x" * (index % 50), "max_tokens": 3, "stream": bool(index % 2)}
                assert client.post("/v1/completions", json=body).status_code == 200

        ask(20)
        before = process.num_threads(), process.num_fds()
        ask(300)
        assert process.num_threads() <= before[0]
        assert process.num_fds() <= before[1]
