"""The Open Inference Protocol (KServe v2): metadata, health, infer in JSON and binary, generate, the repository."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from deepseek.errors import BundleError
from tests.fake_serving import FakeModel
from tests.fake_tensor import FakeTensorModel, LoneInput
from tests.rest_client import client_of

X = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6.5]}
FLAG = {"name": "flag", "shape": [2], "datatype": "BOOL", "data": [True, False]}
WORD = {"name": "word", "shape": [2, 1], "datatype": "BYTES", "data": ["ab", "cd"]}
INPUTS = [X, FLAG, WORD]
RAW_X = np.array([[1, 2, 3], [4, 5, 6.5]], "<f4").tobytes()
RAW_WORD = struct.pack("<I", 2) + b"ab" + struct.pack("<I", 3) + b"\x00\xff\xfe"


@pytest.fixture(scope="module")
def client():
    models = {"three": FakeTensorModel(), "lone": LoneInput(), "say": FakeModel("Hello there. ", end=True)}
    with client_of(models) as made:
        yield made


def infer(client, body, model="three"):
    return client.post(f"/v2/models/{model}/infer", json=body)


def binary(client, head, *raw, model="three", **headers):
    text = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)), **headers}
    return client.post(f"/v2/models/{model}/infer", content=text + b"".join(raw), headers=headers)


def parts_of(response):
    """Return the JSON part and the raw bytes behind it."""
    length = int(response.headers["inference-header-content-length"])
    return json.loads(response.content[:length]), response.content[length:]


def test_the_server_and_its_health(client):
    about = client.get("/v2").json()
    assert about["name"] == "deepseek"
    assert set(about["extensions"]) == {"binary_tensor_data", "model_repository", "generate"}
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/three/ready").json() == {"name": "three", "ready": True}
    assert client.get("/v2/models/three/versions/1/ready").status_code == 200


def test_a_model_that_failed_its_golden_samples_is_not_ready():
    with client_of({"good": LoneInput(), "bad": FakeTensorModel(golden=False)}) as client:
        for path in ("/v2/models/bad/ready", "/v2/models/bad", "/v2/models/bad/versions/1"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()) == (
                503,
                {"error": "the model 'bad' is not ready; try again in a moment"},
            )
            assert int(answer.headers["retry-after"]) >= 1
        assert infer(client, {"inputs": INPUTS}, "bad").status_code == 503


def test_the_signature_of_a_model(client):
    card = client.get("/v2/models/three/versions/1").json()
    assert card == {
        "name": "three",
        "versions": ["1"],
        "platform": "deepseek_tensor",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "flag", "datatype": "BOOL", "shape": [-1]},
            {"name": "word", "datatype": "BYTES", "shape": [-1, -1]},
        ],
        "outputs": [
            {"name": "sum", "datatype": "FP32", "shape": [-1]},
            {"name": "echo", "datatype": "BYTES", "shape": [-1, -1]},
        ],
    }
    assert client.get("/v2/models/say").json()["inputs"] == [{"name": "text_input", "datatype": "BYTES", "shape": [-1]}]


@pytest.mark.parametrize("path", ["/v2/models/three/infer", "/v2/models/three/versions/1/infer"])
def test_infer_in_json(client, path):
    answer = client.post(path, json={"id": "né", "inputs": INPUTS})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "id": "né",
        "model_name": "three",
        "model_version": "1",
        "outputs": [
            {"name": "sum", "datatype": "FP32", "shape": [2], "data": [12.0, 15.5]},
            {"name": "echo", "datatype": "BYTES", "shape": [2, 1], "data": ["ba", "dc"]},
        ],
    }


def test_bytes_that_are_no_utf8_are_for_binary_answers(client):
    reversed_is_no_utf8 = {**WORD, "data": ["ab", "é"]}
    answer = infer(client, {"inputs": [X, FLAG, reversed_is_no_utf8], "outputs": [{"name": "echo"}]})
    assert (answer.status_code, answer.json()) == (
        400,
        {"error": "output 'echo': the answer has bytes that are no UTF-8; ask for it with \"binary_data\": true"},
    )


def test_data_may_be_nested_and_in_any_order(client):
    nested = [{**WORD, "data": [["ab"], ["cd"]]}, FLAG, {**X, "data": [[1, 2, 3], [4, 5, 6.5]]}]
    assert [output["data"] for output in infer(client, {"inputs": nested}).json()["outputs"]] == [
        [12.0, 15.5],
        ["ba", "dc"],
    ]


def test_only_the_outputs_asked_for_in_their_order(client):
    body = {"inputs": INPUTS, "outputs": [{"name": "echo"}, {"name": "sum"}]}
    assert [output["name"] for output in infer(client, body).json()["outputs"]] == ["echo", "sum"]
    body["outputs"] = [{"name": "sum"}]
    assert [output["name"] for output in infer(client, body).json()["outputs"]] == ["sum"]


def test_inputs_as_raw_bytes_beside_json(client):
    x = {"name": "x", "shape": [2, 3], "datatype": "FP32", "parameters": {"binary_data_size": 24}}
    word = {"name": "word", "shape": [2, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(RAW_WORD)}}
    answer = binary(client, {"id": "7", "inputs": [x, FLAG, word], "outputs": [{"name": "sum"}]}, RAW_X, RAW_WORD)
    assert answer.json() == {
        "id": "7",
        "model_name": "three",
        "model_version": "1",
        "outputs": [{"name": "sum", "datatype": "FP32", "shape": [2], "data": [12.0, 15.5]}],
    }


@pytest.mark.parametrize(
    ("wish", "binaries"),
    [
        ({"parameters": {"binary_data_output": True}}, {"sum", "echo"}),
        ({"outputs": [{"name": "sum", "parameters": {"binary_data": True}}, {"name": "echo"}]}, {"sum"}),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "sum", "parameters": {"binary_data": False}}, {"name": "echo"}],
            },
            {"echo"},
        ),
    ],
)
def test_outputs_as_raw_bytes_where_asked_for(client, wish, binaries):
    answer = infer(client, {"id": "é", "inputs": INPUTS, **wish})
    assert answer.headers["content-type"] == "application/octet-stream"
    head, raw = parts_of(answer)
    assert head["id"] == "é"
    expected = {"sum": np.array([12, 15.5], "<f4").tobytes(), "echo": b"\2\0\0\0ba\2\0\0\0dc"}
    values = {"sum": [12.0, 15.5], "echo": ["ba", "dc"]}
    for output in head["outputs"]:
        if output["name"] in binaries:
            size = output["parameters"]["binary_data_size"]
            assert (raw[:size], "data" in output) == (expected[output["name"]], False)
            raw = raw[size:]
        else:
            assert (output["data"], "parameters" in output) == (values[output["name"]], False)
    assert raw == b""


def test_binary_bytes_need_not_be_text(client):
    word = {"name": "word", "shape": [2, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(RAW_WORD)}}
    outputs = [{"name": "echo", "parameters": {"binary_data": True}}]
    _, raw = parts_of(binary(client, {"inputs": [X, FLAG, word], "outputs": outputs}, RAW_WORD))
    assert raw == struct.pack("<I", 2) + b"ba" + struct.pack("<I", 3) + b"\xfe\xff\x00"


def test_a_body_that_is_all_one_raw_tensor(client):
    raw = np.array([1, 2, 3, 4], "<f4").tobytes()
    headers = {"Inference-Header-Content-Length": "0", "content-type": "application/octet-stream"}
    head, answer = parts_of(client.post("/v2/models/lone/infer", content=raw, headers=headers))
    assert head["outputs"][0]["shape"] == [1, 2]
    assert np.frombuffer(answer, "<f4").tolist() == [3.0, 7.0]


def test_floats_come_in_their_shortest_digits(client):
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.1, 0, 0.3, 0]}]}
    assert b'"data":[0.1,0.3]' in infer(client, body, "lone").content


def test_a_client_that_names_no_content_type_is_believed_a_page_is_not(client):
    content = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]})
    path = "/v2/models/lone/infer"
    assert client.post(path, content=content).status_code == 200
    assert client.post(path, content=content, headers={"origin": "http://testserver"}).status_code == 415
    assert client.post(path, content=content, headers={"content-type": "text/plain"}).status_code == 415


def test_numbers_that_json_cannot_say_are_for_binary_answers(client):
    large = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [3e38, 3e38, 0, 0]}
    refused = infer(client, {"inputs": [large]}, "lone")
    assert (refused.status_code, "NaN or infinite" in refused.json()["error"]) == (400, True)
    _, raw = parts_of(infer(client, {"inputs": [large], "parameters": {"binary_data_output": True}}, "lone"))
    assert np.frombuffer(raw, "<f4").tolist() == [np.inf, 0]


def test_a_timeout_that_passes_gets_504():
    model = FakeTensorModel()
    with client_of({"three": model}) as client:
        model.may_run.clear()
        try:
            answer = infer(client, {"inputs": INPUTS, "parameters": {"timeout": 20_000}})
        finally:
            model.may_run.set()
    assert answer.status_code == 504
    assert set(answer.json()) == {"error"}


def test_a_language_model_takes_and_gives_texts(client):
    body = {"inputs": [{"name": "text_input", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}]}
    answer = infer(client, {**body, "id": "1", "parameters": {"max_tokens": 5, "temperature": 0}}, "say").json()
    assert answer["outputs"] == [{"name": "text_output", "datatype": "BYTES", "shape": [2], "data": ["Hello"] * 2}]
    column = {"inputs": [{"name": "text_input", "shape": [2, 1], "datatype": "BYTES", "data": [["a"], ["b"]]}]}
    assert infer(client, column, "say").json()["outputs"][0]["shape"] == [2, 1]
    wrong = infer(client, {**body, "parameters": {"max_tokens": 0}}, "say")
    assert (wrong.status_code, wrong.json()["error"][:16]) == (400, "'max_tokens' is ")


def test_generate_whole_and_streamed(client):
    path = "/v2/models/say/versions/1/generate"
    for body in (
        {"text_input": "x", "max_tokens": 5, "id": "9"},
        {"text_input": "x", "parameters": {"max_tokens": 5}, "id": "9"},
    ):
        assert client.post(path, json=body).json() == {
            "model_name": "say",
            "model_version": "1",
            "text_output": "Hello",
            "id": "9",
        }
    lines = client.post(f"{path}_stream", json={"text_input": "x", "max_tokens": 5}).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert "".join(event["text_output"] for event in events) == "Hello"
    twice = client.post(path, json={"text_input": "x", "seed": 1, "parameters": {"seed": 2}})
    assert (twice.status_code, twice.json()) == (400, {"error": "'seed' is given twice; keep one of them"})
    assert client.post("/v2/models/lone/generate", json={"text_input": "x"}).status_code == 400


def test_the_repository_is_closed_unless_allowed(client):
    for path in ("index", "models/lone/load", "models/lone/unload"):
        answer = client.post(f"/v2/repository/{path}")
        assert (answer.status_code, list(answer.json())) == (403, ["error"])
    assert client.get("/v2/models/lone/ready").status_code == 200


def test_the_repository_lists_and_unloads():
    with client_of({"lone": LoneInput(), "say": FakeModel()}, allow_admin=True) as client:
        index = client.post("/v2/repository/index", json={"ready": True}).json()
        assert [(line["name"], line["version"], line["state"]) for line in index] == [
            ("lone", "1", "READY"),
            ("say", "1", "READY"),
        ]
        assert client.post("/v2/repository/models/lone/unload").json() == {}
        assert infer(client, {"inputs": []}, "lone").status_code == 404
        ready = client.post("/v2/repository/index", json={"ready": True}).json()
        assert [line["name"] for line in ready] == ["say"]
        assert client.post("/v2/repository/models/nobody/unload").status_code == 404
        assert client.post("/v2/repository/models/..%2fx/load").status_code == 404


def test_a_bundle_that_can_not_be_loaded_is_the_clients_to_know_without_paths(monkeypatch, caplog):
    from deepseek.serve import Service

    def load(self, name, path=None, version=None, **more):
        raise BundleError("it is broken", found="/secret/path")

    monkeypatch.setattr(Service, "load", load)
    with client_of({"lone": LoneInput()}, allow_admin=True) as client:
        answer = client.post("/v2/repository/models/lone/load")
        assert (answer.status_code, answer.json()) == (
            400,
            {"error": "the model 'lone' can't be loaded; found it is broken"},
        )
        assert client.get("/v2/models/lone/ready").status_code == 200
