"""REST and gRPC over one service: the same request has the same answer, and the same error in the same words."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from starlette.testclient import TestClient

from deepseek.bundle import load
from deepseek.serve import Service, create_app
from deepseek.serve.rest.door import Guard
from deepseek.serve.rpc import RpcLimits, RpcServer, messages
from deepseek.serve.security.keys import KeyRing
from deepseek.serve.tensor.limits import TensorLimits
from deepseek.serve.tensor.model import TensorModel
from tests.fake_serving import FakeModel
from tests.fake_tensor import FakeTensorModel, LoneInput
from tests.fake_tensors import mlp_bundle
from tests.rpc_client import GENERATE, RpcClient, infer_request

CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class Both:
    """Clients of both sides of one service."""

    def __init__(self, rest, rpc, service):
        self.rest, self.rpc, self.service = rest, rpc, service

    def infer(self, model, body, request):
        """Return both answers as (status, value): names, datatypes, shapes and values, or the sentence."""
        answer = self.rest.post(f"/v2/models/{model}/infer", json=body)
        if answer.status_code != 200:
            left = answer.status_code, answer.json()["error"]
        else:
            parts = answer.json()
            outputs = [(t["name"], t["datatype"], t["shape"], t["data"]) for t in parts["outputs"]]
            left = 200, (parts["model_name"], parts["model_version"], parts.get("id", ""), outputs)
        given = self.rpc.call("ModelInfer", request)
        if isinstance(given, tuple):
            return left, (given.code, given.sentence)
        outputs = [(t.name, t.datatype, list(t.shape), values(t.contents)) for t in given.outputs]
        return left, (200, (given.model_name, given.model_version, given.id, outputs))


def values(contents):
    ((_, listed),) = contents.ListFields()
    return [item.decode() if isinstance(item, bytes) else item for item in listed]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    mlp = TensorModel(load(mlp_bundle(tmp_path_factory.mktemp("mlp") / "bundle")), TensorLimits(measure_seconds=0))
    models = {"echo": FakeModel(max_length=64), "three": FakeTensorModel(), "lone": LoneInput(), "mlp": mlp}
    yield from serve_both(models)


def serve_both(models, guard=None, **limits):
    checked = threading.Event()
    service = Service(models)
    app = create_app(service, guard=guard, on_checked=lambda problem: checked.set())
    with TestClient(app, raise_server_exceptions=False) as rest:
        assert checked.wait(20)
        with RpcServer(service, guard=guard, limits=RpcLimits(**limits)) as server:
            rpc = RpcClient(server.port)
            yield Both(rest, rpc, service)
            rpc.channel.close()


def pair(arrays, **fields):
    """Return one request in both forms; `arrays`: name -> (datatype, shape, flat values)."""
    inputs = [
        {"name": name, "datatype": datatype, "shape": shape, "data": data}
        for name, (datatype, shape, data) in arrays.items()
    ]
    request = messages.ModelInferRequest(**fields)
    fields_of = {"FP32": "fp32_contents", "BOOL": "bool_contents", "BYTES": "bytes_contents", "INT64": "int64_contents"}
    for tensor in inputs:
        message = request.inputs.add(**{key: tensor[key] for key in ("name", "datatype", "shape")})
        flat = [item.encode() if isinstance(item, str) else item for item in tensor["data"]]
        getattr(message.contents, fields_of[tensor["datatype"]]).extend(flat)
    return {"inputs": inputs}, request


X = ("FP32", [1, 4], [1.0, 2.0, 3.0, 4.0])


def test_the_same_tensors_give_the_same_answer(both):
    body, request = pair({"x": X}, model_name="lone", id="q1")
    rest, rpc = both.infer("lone", {**body, "id": "q1"}, request)
    assert rest == rpc == (200, ("lone", "1", "q1", [("y", "FP32", [1, 2], [3.0, 7.0])]))
    three = {
        "x": ("FP32", [2, 3], [1.0, 2.0, 3.0, 0.5, 0.25, -9.0]),
        "flag": ("BOOL", [2], [True, False]),
        "word": ("BYTES", [2, 1], ["ab", "é"[:0]]),
    }
    body, request = pair(three, model_name="three")
    rest, rpc = both.infer("three", body, request)
    assert rest == rpc and rest[0] == 200


def test_a_real_model_gives_the_same_numbers_as_itself_run_by_hand(both):
    import torch

    rows = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    hosted = both.service.find("mlp")
    (spec,) = hosted.engine.signature.inputs
    body, request = pair({spec.name: ("FP32", [3, 4], rows.ravel().tolist())}, model_name="mlp")
    rest, rpc = both.infer("mlp", body, request)
    assert rest[0] == 200
    (left,), (right,) = rest[1][3], rpc[1][3]
    assert left[:3] == right[:3]
    np.testing.assert_allclose(
        left[3], right[3], rtol=1e-6
    )  # JSON has the shortest decimals that give the float32 back
    with torch.no_grad():
        found = hosted.bundle.model(torch.from_numpy(rows))
    logits = found if isinstance(found, torch.Tensor) else next(iter(found.values()))
    np.testing.assert_allclose(np.reshape(right[3], right[2]), logits.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("model", "arrays"),
    [
        ("nobody", {"x": X}),
        ("..%2fx", {"x": X}),
        ("lone", {}),
        ("lone", {"y": X}),
        ("lone", {"x": X, "z": X}),
        ("lone", {"x": ("FP32", [1, 3], [1.0, 2.0, 3.0])}),
        ("lone", {"x": ("FP32", [0, 4], [])}),
        ("lone", {"x": ("INT64", [1, 4], [1, 2, 3, 4])}),
        ("lone", {"x": ("FP32", [1, 4], [1.0])}),
        ("lone", {"x": ("FP32", [-1, 4], [])}),
        ("lone", {"x": ("FP32", [1] * 17, [1.0])}),
        ("lone", {"x": ("FP99", [1, 4], [1.0])}),
        ("echo", {"x": X}),
        ("echo", {"text_input": ("BYTES", [2, 2], ["a", "b", "c", "d"])}),
        ("echo", {"text_input": ("BYTES", [1], ["a" * 100])}),
    ],
)
def test_the_same_mistake_has_the_same_class(both, model, arrays):
    named = {name: ("FP32" if datatype == "FP99" else datatype, *rest) for name, (datatype, *rest) in arrays.items()}
    body, request = pair(named, model_name=model.replace("%2f", "/"))
    for tensor, message in zip(body["inputs"], request.inputs, strict=True):
        tensor["datatype"] = message.datatype = arrays[tensor["name"]][0]
    (status, told), (code, sentence) = both.infer(model, body, request)
    assert CODES[status] == code
    assert told and sentence


@pytest.mark.parametrize(
    ("model", "arrays"),
    [
        ("nobody", {"x": X}),
        ("lone", {"y": X}),
        ("lone", {"x": ("FP32", [1, 3], [1.0, 2.0, 3.0])}),
        ("lone", {"x": ("INT64", [1, 4], [1, 2, 3, 4])}),
        ("echo", {"x": X}),
        ("echo", {"text_input": ("BYTES", [1], ["a" * 100])}),
    ],
)
def test_what_is_wrong_with_the_model_s_inputs_is_said_in_the_same_words(both, model, arrays):
    body, request = pair(arrays, model_name=model)
    (status, told), (code, sentence) = both.infer(model, body, request)
    assert (CODES[status], told) == (code, sentence)


SAMPLING = [
    {"max_tokens": 10**9},
    {"max_tokens": -1},
    {"temperature": 3.0},
    {"top_p": 2.0},
    {"top_k": -1},
    {"seed": -1},
    {"repetition_penalty": 0.0},
    {"best": 1},
]


@pytest.mark.parametrize("parameters", [{"max_tokens": 7}, {"max_tokens": 5, "seed": 3, "stop": "c"}, *SAMPLING])
def test_text_and_its_parameters(both, parameters):
    body, request = pair({"text_input": ("BYTES", [2], ["abcd", "xy"])}, model_name="echo")
    for name, value in parameters.items():
        kind = {int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    rest, rpc = both.infer("echo", {**body, "parameters": parameters}, request)
    if rest[0] == 200:
        assert rest == rpc
    else:
        assert CODES[rest[0]] == rpc[0]
        assert "best" in parameters or rest[1] == rpc[1]


@pytest.mark.parametrize("given", [{"max_tokens": 6}, {"max_tokens": 6, "n": 2, "stop": ["b"]}, *SAMPLING[:-1]])
@pytest.mark.parametrize("chat", [True, False])
def test_streamed_text_is_what_openai_s_routes_give(both, given, chat):
    asked = {"messages": [{"role": "user", "content": "abc"}]} if chat else {"prompt": "abc"}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    rest = both.rest.post(path, json={"model": "echo", **asked, **given})
    request = messages.GenerateRequest(model="echo", **asked)
    for name, value in given.items():
        if name == "stop":
            request.sampling.stop.extend(value)
        else:
            setattr(request.sampling, name, value)
    answers = both.rpc.stream(GENERATE, request.SerializeToString(), messages.GenerateResponse)
    if rest.status_code != 200:
        assert (CODES[rest.status_code], rest.json()["error"]["message"]) == answers[-1][:2]
        return
    choices = rest.json()["choices"]
    texts = [choice["message"]["content"] if chat else choice["text"] for choice in choices]
    assert texts == ["".join(a.text for a in answers if a.choice == index) for index in range(len(choices))]
    ends = {a.choice: a.finish_reason for a in answers if a.finish_reason}
    assert [choice["finish_reason"] for choice in choices] == [ends[index] for index in range(len(choices))]
    usage = rest.json()["usage"]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert getattr(answers[-1].usage, name) == usage[name]


def test_metadata_is_the_same(both):
    server = both.rest.get("/v2").json()
    told = both.rpc.call("ServerMetadata")
    assert (server["name"], server["version"]) == (told.name, told.version)
    for name in ("echo", "three", "lone", "mlp"):
        rest = both.rest.get(f"/v2/models/{name}").json()
        rpc = both.rpc.call("ModelMetadata", messages.ModelMetadataRequest(name=name))
        assert rest == {
            "name": rpc.name,
            "versions": list(rpc.versions),
            "platform": rpc.platform,
            "inputs": [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in rpc.inputs],
            "outputs": [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in rpc.outputs],
        }
        assert both.rest.get(f"/v2/models/{name}/ready").status_code == 200
    missing = both.rest.get("/v2/models/nobody").json()["error"]
    assert missing == both.rpc.call("ModelMetadata", messages.ModelMetadataRequest(name="nobody")).sentence


def test_versions_that_are_not_there(both):
    rest = both.rest.get("/v2/models/lone/versions/9")
    rpc = both.rpc.call("ModelMetadata", messages.ModelMetadataRequest(name="lone", version="9"))
    assert (CODES[rest.status_code], rest.json()["error"]) == rpc[:2]
    request = infer_request("lone", {"x": ("FP32", np.zeros((1, 4), np.float32))}, model_version="9")
    assert both.rpc.call("ModelInfer", request)[:2] == rpc[:2]


def test_keys_and_administration_are_refused_alike(both):
    rest = both.rest.post("/v2/repository/index", json={})
    rpc = both.rpc.call("RepositoryIndex")
    assert (CODES[rest.status_code], rest.json()["error"]) == rpc[:2]
    guard = Guard(keys=KeyRing.of_secret("k" * 20))
    for guarded in serve_both({"lone": LoneInput()}, guard):
        rest = guarded.rest.get("/v2/models/lone")
        rpc = guarded.rpc.call("ModelMetadata", messages.ModelMetadataRequest(name="lone"))
        assert (CODES[rest.status_code], rest.json()["error"]) == rpc[:2]
        assert json.loads(guarded.rest.get("/v2/health/live").text) == {"live": guarded.rpc.call("ServerLive").live}


def test_a_model_that_breaks_and_a_server_that_stops_are_told_alike(both):
    body, request = pair({"x": X}, model_name="lone")
    hosted = both.service.find("lone")
    hosted.model.failure = RuntimeError("secret")
    (status, told), (code, sentence) = both.infer("lone", body, request)
    hosted.model.failure = None
    assert (status, code) == (500, "INTERNAL")
    assert "secret" not in told + sentence and told[:-32] == sentence[:-32]
    both.service.stopping = True
    (status, told), (code, sentence) = both.infer("lone", body, request)
    both.service.stopping = False
    assert (CODES[status], told) == (code, sentence)
