"""What a careless or hostile gRPC client may send, each with its exact answer: code, sentence and named field."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import grpc
import numpy as np
import pytest
from starlette.testclient import TestClient

from deepseek.serve import create_app
from deepseek.serve.rest.door import Guard
from deepseek.serve.rpc import RpcLimits, RpcServer, messages, protocol
from deepseek.serve.security.keys import KeyRing
from deepseek.serve.service import Service
from tests.fake_serving import FakeModel
from tests.fake_tensor import FakeTensorModel, LoneInput
from tests.fake_tensors import mlp_bundle
from tests.rpc_client import GENERATE, INFERENCE, Refused, RpcClient, infer_request, rpc_of

LONE = {"x": ("FP32", np.array([[1, 2, 3, 4]], np.float32))}
TEXT = {"text_input": ("BYTES", np.array([b"x"], object))}
NO_KEY = "missing or wrong API key; wanted the header Authorization: Bearer KEY"
OPEN = {"ServerLive", "ServerReady", "Check", "List", "Watch"}


@pytest.fixture(scope="module")
def client():
    with rpc_of({"say": FakeModel("fine ", end=True), "lone": LoneInput()}) as (client, _, _):
        yield client
        assert client.call("ModelInfer", infer_request("lone", LONE)).model_name == "lone"


def refusal(answer) -> tuple[str, str, str | None]:
    """Return code, sentence and field of a refusal."""
    assert isinstance(answer, Refused), answer
    assert len(answer.trailing["x-request-id"]) == 32
    return answer.code, answer.sentence, answer.trailing.get("x-error-field")


def bounded(field: str, value: str, wanted: str) -> tuple[str, str, str]:
    return "INVALID_ARGUMENT", f"'{field}' is {value}; wanted {wanted}", field


@pytest.mark.parametrize(
    ("field", "kind", "value", "found", "wanted"),
    [
        ("max_tokens", "int64_param", 10**9, "1000000000", "less than or equal to 16384"),
        ("max_tokens", "int64_param", -1, "-1", "greater than or equal to 1"),
        ("max_tokens", "bool_param", True, "True", "a valid integer"),
        ("max_tokens", "string_param", "5", "'5'", "a valid integer"),
        ("max_tokens", "double_param", float("nan"), "nan", "a valid integer"),
        ("temperature", "double_param", float("nan"), "nan", "a finite number"),
        ("top_p", "double_param", 2.0, "2.0", "less than or equal to 1"),
        ("seed", "uint64_param", 2**64 - 1, str(2**64 - 1), "less than or equal to 9223372036854775807"),
        ("stop", "string_param", "x" * 129, "'" + "x" * 44 + "...", "at most 128 characters"),
    ],
)
def test_a_parameter_of_inference(client, field, kind, value, found, wanted):
    request = infer_request("say", TEXT)
    setattr(request.parameters[field], kind, value)
    expected = bounded(field if field != "stop" else "stop.0", found, wanted)
    assert refusal(client.call("ModelInfer", request)) == expected
    (streamed,) = client.infer_stream([request])
    assert streamed.error_message == expected[1]
    assert streamed.infer_response.parameters["status"].int64_param == 400


def test_a_parameter_that_is_none_of_inference(client):
    request = infer_request("say", TEXT)
    request.parameters["n"].int64_param = 10**6
    assert refusal(client.call("ModelInfer", request))[::2] == ("INVALID_ARGUMENT", "n")


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"max_tokens": 10**9}, bounded("max_tokens", "1000000000", "less than or equal to 16384")),
        ({"max_tokens": -1}, bounded("max_tokens", "-1", "greater than or equal to 1")),
        ({"n": 10**6}, bounded("n", "1000000", "less than or equal to 8")),
        ({"temperature": float("nan")}, bounded("temperature", "nan", "a finite number")),
        ({"top_p": 2.0}, bounded("top_p", "2.0", "less than or equal to 1")),
        ({"seed": -1}, bounded("seed", "-1", "greater than or equal to 0")),
        ({"stop": ["x"] * 100_000}, ("INVALID_ARGUMENT", "'stop' has 100000 items; wanted at most 16 items", "stop")),
        (
            {"json_schema": '{"a":' * 100_000},
            (
                "INVALID_ARGUMENT",
                "'json_schema' is no JSON object; found the body is nested more than 16 levels deep or has brackets "
                "that don't match",
                "json_schema",
            ),
        ),
        (
            {"json_schema": '{"type": 1, "type": 2}'},
            (
                "INVALID_ARGUMENT",
                "'json_schema' is no JSON object; found the key 'type' appears twice",
                "json_schema",
            ),
        ),
        (
            {"json_schema": '{"a": "\\ud800"}'},
            (
                "INVALID_ARGUMENT",
                "'json_schema' is no JSON object; found a text has half of a surrogate pair",
                "json_schema",
            ),
        ),
    ],
    ids=range(10),
)
def test_a_field_of_generation(client, sampling, expected):
    for asked in ({"prompt": "x"}, {"messages": [{"role": "user", "content": "x"}]}):
        request = messages.GenerateRequest(model="say", sampling=sampling, **asked)
        (answer,) = client.generate(request)
        assert refusal(answer) == expected


def test_half_a_surrogate_pair_is_no_text_on_the_wire(client):
    broken = b"\x0a\x03say\x12\x03\xed\xa0\x80"  # model, and a prompt that is U+D800 alone
    (answer,) = client.stream(GENERATE, broken, messages.GenerateResponse)
    wanted = "the message is not a deepseek.v1.GenerateRequest; wanted the protocol's field types, texts in UTF-8"
    assert refusal(answer) == ("INVALID_ARGUMENT", wanted, None)


def test_a_message_of_100_mb_is_refused_by_its_length(client):
    answer = client.raw(INFERENCE + "ModelInfer", bytes(100 << 20))
    assert answer.code == "RESOURCE_EXHAUSTED"
    assert f"({100 << 20} vs. {16 << 20})" in answer.sentence


@contextlib.contextmanager
def administered(folder: Path) -> Iterator[tuple[TestClient, RpcClient]]:
    """Yield a REST and a gRPC client that may load what lies in `folder`."""
    checked = threading.Event()
    service = Service({"lone": LoneInput()}, device="cpu", folder=folder)
    app = create_app(service, allow_admin=True, on_checked=lambda problem: checked.set())
    with TestClient(app, raise_server_exceptions=False) as rest:
        assert checked.wait(20)
        with RpcServer(service, limits=RpcLimits(allow_admin=True)) as server:
            rpc = RpcClient(server.port)
            yield rest, rpc
            rpc.channel.close()


def load_over_both(rest: TestClient, rpc: RpcClient, name: str) -> tuple[int, str]:
    """Return status and sentence with which both refuse to load a model."""
    answer = rest.post(f"/v2/repository/models/{name}/load")
    refused = rpc.call("RepositoryModelLoad", messages.RepositoryModelLoadRequest(model_name=name))
    codes = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND"}
    assert (codes[answer.status_code], answer.json()["error"]) == refusal(refused)[:2]
    return answer.status_code, refused.sentence


def test_a_bundle_that_can_not_be_served_is_told_over_both_alike_and_without_its_path(tmp_path):
    folder = tmp_path / "served"
    for name in ("torn", "linked", "newer"):
        mlp_bundle(folder / name)
    (folder / "torn" / "model.safetensors").write_bytes(b"torn")
    (folder / "newer" / "config.yaml").write_text("format_version: 99\n")
    with administered(folder) as (rest, rpc):
        for name in ("torn", "newer"):
            status, told = load_over_both(rest, rpc, name)
            assert status == 400 and told.startswith(f"the model '{name}' can't be loaded; found served/{name}")
            assert str(tmp_path) not in told
        assert load_over_both(rest, rpc, "nobody")[0] == 404
        (tmp_path / "secret").write_text("secret")
        (folder / "linked" / "notes.txt").symlink_to(tmp_path / "secret")
        status, told = load_over_both(rest, rpc, "linked")
        found = "served/linked/notes.txt is a link that leads out of served/linked"
        assert (status, told) == (400, f"the model 'linked' can't be loaded; found {found}")
        index = rest.post("/v2/repository/index").json()
        assert {line["name"]: line["state"] for line in index} == {
            "lone": "READY",
            "torn": "UNAVAILABLE",
            "newer": "UNAVAILABLE",
        }
        assert str(tmp_path) not in json.dumps(index)
        answer = rest.post("/v2/models/torn/infer", json={"inputs": []})
        told = "the model 'torn' is not ready; try again in a moment"
        assert (answer.status_code, answer.json()) == (503, {"error": told})
        refused = rpc.call("ModelInfer", infer_request("torn", LONE))
        assert refusal(refused) == ("UNAVAILABLE", told, None)
        assert int(answer.headers["retry-after"]) > 0 and int(refused.trailing["retry-after"]) > 0
        assert rpc.call("ModelInfer", infer_request("lone", LONE)).model_name == "lone"


@pytest.mark.parametrize("name", ["../outside", "..", ".", "%2e%2e%2foutside", "..%2foutside", "/etc", "a\0", "é"])
def test_a_name_reaches_no_file(tmp_path, name):
    mlp_bundle(tmp_path / "outside")
    (tmp_path / "served").mkdir()
    with administered(tmp_path / "served") as (rest, rpc):
        asked = {
            "ModelInfer": infer_request(name, TEXT),
            "ModelMetadata": messages.ModelMetadataRequest(name=name),
            "ModelReady": messages.ModelReadyRequest(name=name),
            "RepositoryModelLoad": messages.RepositoryModelLoadRequest(model_name=name),
            "RepositoryModelUnload": messages.RepositoryModelUnloadRequest(model_name=name),
        }
        for method, request in asked.items():
            code, sentence, field = refusal(rpc.call(method, request))
            assert (code, field) == ("NOT_FOUND", "model")
            assert sentence.removeprefix(f"the model '{name}'").removeprefix("this model").partition(";")[0] == (
                " does not exist here"
            )
        answer = rest.post(f"/v2/repository/models/{quote(name, safe='')}/load")
        assert answer.status_code == 404


def test_every_method_but_health_asks_for_a_key():
    guard = Guard(keys=KeyRing.of_secret("k-1"))
    with rpc_of({"lone": LoneInput()}, guard=guard) as (stranger, server, _):
        guesses = [
            stranger,
            *(RpcClient(0, key=key, channel=stranger.channel) for key in ("wrong", "k-11", "x" * 4000)),
        ]
        paths = sorted(server._methods)
        assert len(paths) >= 16
        for path in [*paths, "/no/such", "/grpc.health.v1.Health/Nothing"]:
            for guess in guesses:
                answers = guess.stream(path, b"", messages.ServerLiveRequest, timeout=1.0)
                if path.rpartition("/")[2] in OPEN:
                    assert not answers or answers[0] != "UNAUTHENTICATED"
                    break
                assert refusal(answers[-1]) == ("UNAUTHENTICATED", NO_KEY, None), path
        friend = RpcClient(0, key="k-1", channel=stranger.channel)
        assert friend.call("ModelInfer", infer_request("lone", LONE)).model_name == "lone"


def test_a_client_that_takes_nothing_of_its_answers_is_cut_off(monkeypatch):
    monkeypatch.setattr(protocol, "WRITE_SECONDS", 0.2)
    arrays = {
        "x": ("FP32", np.zeros((1, 3), np.float32)),
        "flag": ("BOOL", np.array([True])),
        "word": ("BYTES", np.array([[bytes(4 << 20)]], object)),  # far more than may be on its way
    }
    question = infer_request("three", arrays).SerializeToString()
    small = [
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 65536),
        ("grpc.max_receive_message_length", -1),
    ]
    with (
        rpc_of({"three": FakeTensorModel()}) as (client, server, service),
        grpc.insecure_channel(f"127.0.0.1:{server.port}", small) as channel,
    ):
        call = channel.stream_stream(INFERENCE + "ModelStreamInfer")(iter([question]))
        deadline = time.monotonic() + 20
        while server._gate._tasks or not service.find("three").engine.stats().finished:
            assert time.monotonic() < deadline, "the call goes on"
            time.sleep(0.01)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code().name == "DEADLINE_EXCEEDED"
        assert caught.value.details() == "the client took none of the answers for 0.2 s; read them as they come"
        assert client.call("ModelInfer", infer_request("three", {**arrays, "word": ("BYTES", [[b"ab"]])})).outputs
