"""What REST keeps and tells beside an answer, over gRPC too: log probabilities, sessions, the cache, drift."""

from __future__ import annotations

import hashlib
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from starlette.testclient import TestClient

from deepseek.serve import Service, create_app
from deepseek.serve.monitoring.metrics import PlainMetrics
from deepseek.serve.monitoring.profile import make_profile
from deepseek.serve.monitoring.watch import Watches
from deepseek.serve.rest.answer import Helpers
from deepseek.serve.rest.door import Guard
from deepseek.serve.rpc import RpcLimits, RpcServer, messages
from deepseek.serve.rpc.kept import pack, unpack
from deepseek.serve.rpc.protocol import code_name
from deepseek.serve.security.keys import KeyId, KeyRing
from deepseek.serve.state.options import StateOptions, build_state
from tests.fake_serving import FakeModel
from tests.fake_tensor import LoneInput
from tests.rpc_client import RpcClient, infer_request

ANN, BOB = "ann-1", "bob-1"


class Counted(LoneInput):
    """Its answer tells how often it ran, so that a kept answer is seen."""

    def run(self, inputs):
        return {"y": super().run(inputs)["y"] + self.runs}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Clients of both sides of one service with everything beside it."""
    checked = threading.Event()
    service = Service({"say": FakeModel(max_length=128), "lone": Counted()}, folder=tmp_path_factory.mktemp("models"))
    state, watches = build_state(StateOptions(cache_bytes=1 << 20)), Watches()
    keys = KeyRing({hashlib.sha256(key.encode()).hexdigest(): KeyId(key[:3]) for key in (ANN, BOB)})
    more = {"cache": state.cache, "sessions": state.sessions, "watches": watches}
    app = create_app(
        service, guard=Guard(keys=keys), allow_admin=True, on_checked=lambda problem: checked.set(), **more
    )
    with TestClient(app, raise_server_exceptions=False) as rest:
        assert checked.wait(20)
        rest.headers["authorization"] = f"Bearer {ANN}"
        helpers, limits = Helpers(PlainMetrics(service), **more), RpcLimits(allow_admin=True)
        with RpcServer(service, guard=Guard(keys=keys), helpers=helpers, limits=limits) as server:
            rpc, bob = RpcClient(server.port, key=ANN), RpcClient(server.port, key=BOB)
            yield SimpleNamespace(rest=rest, rpc=rpc, bob=bob, service=service, state=state, watches=watches)
            rpc.channel.close()
            bob.channel.close()
    watches.close()


def generate(text, *, chat=False, session_id=None, **sampling):
    request = messages.GenerateRequest(model="say")
    if chat:
        request.messages.add(role="user", content=text)
    else:
        request.prompt = text
    if session_id is not None:
        request.session_id = session_id
    for name, value in sampling.items():
        setattr(request.sampling, name, value)
    return request


def text_of(answers):
    return "".join(answer.text for answer in answers)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_log_probabilities_are_those_of_a_chat_over_rest(both, count):
    body = {"model": "say", "messages": [{"role": "user", "content": "aé"}], "max_tokens": 6, "n": 2}
    rest = both.rest.post("/v1/chat/completions", json={**body, "logprobs": True, "top_logprobs": count}).json()
    answers = both.rpc.generate(generate("aé", chat=True, max_tokens=6, n=2, logprobs=count))
    for index, choice in enumerate(rest["choices"]):
        mine = [one for answer in answers if answer.choice == index for one in answer.logprobs]
        told = [{**plain(one.chosen), "top_logprobs": [plain(top) for top in one.top]} for one in mine]
        assert told == choice["logprobs"]["content"]


def plain(likely):
    return {"token": likely.token, "logprob": likely.logprob, "bytes": list(likely.raw)}


def test_log_probabilities_are_those_of_a_completion_over_rest(both):
    body = {"model": "say", "prompt": "abc", "max_tokens": 5, "logprobs": 2}
    rest = both.rest.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    mine = [one for answer in both.rpc.generate(generate("abc", max_tokens=5, logprobs=2)) for one in answer.logprobs]
    assert [one.chosen.token for one in mine] == rest["tokens"]
    assert [one.chosen.logprob for one in mine] == rest["token_logprobs"]
    assert [{top.token: top.logprob for top in reversed(one.top)} for one in mine] == rest["top_logprobs"]
    assert not any(answer.logprobs for answer in both.rpc.generate(generate("abc", max_tokens=5)))


@pytest.mark.parametrize(
    ("given", "chat"),
    [
        ({"logprobs": 6}, False),
        ({"logprobs": -1}, False),
        ({"logprobs": 21}, True),
        ({"logprobs": -1}, True),
        ({"session_id": "no spaces"}, True),
        ({"session_id": "s" * 65}, True),
        ({"session_id": "s"}, False),
        ({"session_id": "s", "n": 2}, True),
    ],
)
def test_the_same_mistake_has_the_same_class_and_field(both, given, chat):
    body = {"model": "say", **given, **({"messages": [{"role": "user", "content": "x"}]} if chat else {"prompt": "x"})}
    if chat and "logprobs" in given:
        body |= {"logprobs": True, "top_logprobs": given["logprobs"]}
    rest = both.rest.post(f"/v1/{'chat/' if chat else ''}completions", json=body)
    (refusal,) = both.rpc.generate(generate("x", chat=chat, **given))
    assert (code_name(rest.status_code), rest.json()["error"]["message"]) == refusal[:2]
    assert rest.json()["error"]["param"] == refusal.trailing["x-error-field"]


def test_a_conversation_goes_on_from_one_protocol_to_the_other_and_is_its_owners(both):
    def over_rest(text):
        message = {"role": "user", "content": text}
        body = {"model": "say", "messages": [message], "session_id": "talk", "max_tokens": 8}
        return both.rest.post("/v1/chat/completions", json=body).json()

    asked = {"chat": True, "session_id": "talk", "max_tokens": 8}
    first = over_rest("one")["usage"]["prompt_tokens"]
    answers = both.rpc.generate(generate("two", **asked))
    longer = answers[-1].usage.prompt_tokens
    turn = len("user: two\n")
    assert longer == first + len("assistant: \n") + 8 + turn
    assert over_rest("six")["usage"]["prompt_tokens"] == longer + len(f"assistant: {text_of(answers)}\n") + turn
    assert both.bob.generate(generate("two", **asked))[-1].usage.prompt_tokens == turn


def test_text_that_would_be_the_same_again_is_kept(both):
    def hits():
        return both.state.cache.stats().hits

    before = hits()
    answers = [both.rpc.generate(generate("kept", temperature=0.0, max_tokens=9)) for _ in range(4)]
    assert hits() == before + 2 and answers[1:] == answers[:-1]  # kept from the second time on
    assert both.bob.generate(generate("kept", temperature=0.0, max_tokens=9)) == answers[0]
    assert hits() == before + 2  # another key's answers are its own
    rest = {"model": "say", "prompt": "kept", "temperature": 0, "max_tokens": 9}
    assert both.rest.post("/v1/completions", json=rest).json()["choices"][0]["text"] == text_of(answers[0])
    for fields in ({"temperature": 1.0}, {"temperature": 0.0, "chat": True, "session_id": "kept"}):
        before = hits()
        for _ in range(3):
            both.rpc.generate(generate("free", max_tokens=9, **fields))
        assert hits() == before


@pytest.mark.parametrize("raw", [True, False])
def test_tensors_that_were_asked_before_are_kept(both, raw):
    def ask(**fields):
        values = np.array([[1, 2, 3, 4 + raw]], np.float32)
        return both.rpc.call("ModelInfer", infer_request("lone", {"x": ("FP32", values)}, raw=raw, **fields))

    def value(answer):
        numbers = np.frombuffer(answer.raw_output_contents[0], np.float32) if raw else answer.outputs[0].contents
        return list(numbers if raw else numbers.fp32_contents)

    first, second, third = ask(id="a"), ask(id="b"), ask(id="c")
    assert value(first) != value(second) == value(third)
    assert [answer.id for answer in (first, second, third)] == ["a", "b", "c"]
    again = infer_request("lone", {"x": ("FP32", np.array([[1, 2, 3, 4 + raw]], np.float32))}, raw=raw, id="d")
    (piece,) = both.rpc.infer_stream([again])
    assert value(piece.infer_response) == value(third) and piece.infer_response.id == "d"


def test_what_is_asked_is_compared_with_the_training_data(both):
    hosted = both.service.find("lone")
    rows = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    hosted.profile = make_profile([{"x": rows}], [{"y": rows[:, :2]}])
    for row in rows[:5]:
        both.rpc.call("ModelInfer", infer_request("lone", {"x": ("FP32", row[None] + 100)}))
    both.watches.flush()
    assert both.watches.of(hosted).watched == 5


@pytest.mark.parametrize(("version", "status"), [("1", 200), ("2", 404), ("../1", 400)])
def test_a_version_is_asked_for_alike(both, version, status):
    body = {"model": "say", "version": version, "prompt": "abc", "max_tokens": 3}
    rest = both.rest.post("/v1/completions", json=body)
    request = generate("abc", max_tokens=3)
    request.version = version
    answers = both.rpc.generate(request)
    assert rest.status_code == status
    if status == 200:
        assert rest.json()["choices"][0]["text"] == text_of(answers)
    else:
        assert (code_name(status), rest.json()["error"]["message"]) == answers[-1][:2]


@pytest.mark.parametrize(
    ("parameters", "field"),
    [({"version": "a b"}, "version"), ({"version": "9"}, None), ({"share": 2.0}, "share"), ({"x": 1}, "x")],
)
def test_an_order_that_can_not_be_is_refused_alike(both, parameters, field):
    rest = both.rest.post("/v2/repository/models/lone/load", json={"parameters": parameters})
    request = messages.RepositoryModelLoadRequest(model_name="lone")
    for name, value in parameters.items():
        if isinstance(value, int):
            request.parameters[name].int64_param = value
        else:
            request.parameters[name].string_param = str(value)
    refusal = both.rpc.call("RepositoryModelLoad", request)
    assert code_name(rest.status_code) == refusal.code and rest.status_code in (400, 404)
    assert field is None or refusal.trailing["x-error-field"] == field


def test_messages_are_kept_whole():
    for parts in ([], [b""], [b"a", b"", b"x" * 70_000]):
        assert list(unpack(pack(parts))) == parts
