"""Predict: instances to predictions, raw bodies by content type, rows of one shape in one run."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.errors import RequestError
from deepseek.serve.rest import body as request_body
from deepseek.serve.rest import predict as predict_route
from deepseek.serve.rest.body import parse_json
from deepseek.serve.rest.door import Guard
from deepseek.serve.rest.tensor_data import from_json, from_raw, to_raw
from deepseek.serve.tensor.datatypes import DATATYPES, numpy_dtype
from tests.fake_tensor import FakeTensorModel, LoneInput
from tests.rest_client import client_of


@pytest.fixture(scope="module")
def client():
    with client_of({"three": FakeTensorModel(), "lone": LoneInput()}) as made:
        yield made


@pytest.mark.parametrize("path", ["/v1/models/lone:predict", "/v1/models/lone/versions/1:predict"])
def test_instances_bare_or_named(client, path):
    answer = client.post(path, json={"instances": [[1, 2, 3, 4], {"x": [0.5, 0, 0, 1]}]})
    assert answer.json() == {
        "predictions": [{"y": [3.0, 7.0]}, {"y": [0.5, 1.0]}],
        "model": "lone",
        "version": "1",
    }


def test_rows_of_one_shape_are_one_run_and_keep_their_order():
    model = FakeTensorModel()
    with client_of({"three": model}) as client:
        words = [["a"], ["bc", "d"], ["ef"], ["g", "hi"], ["j"]]
        instances = [{"x": [i, 0, 0], "flag": i == 3, "word": word} for i, word in enumerate(words)]
        answer = client.post("/v1/models/three:predict", json={"instances": instances}).json()
    assert [item["sum"] for item in answer["predictions"]] == [0, 1, 2, 6, 4]
    assert [item["echo"] for item in answer["predictions"]] == [[text[::-1] for text in word] for word in words]
    assert model.runs == 2


def test_a_raw_body_is_an_instance_where_the_form_takes_it(client, monkeypatch):
    class Picture:
        takes, gives, needs_model = "image", "classes", False
        request_schema = answer_schema = {}

        def to_inputs(self, instance):
            if not isinstance(instance, bytes):
                raise RequestError("'image' is no picture", field="image", status=415)
            return {"x": np.frombuffer(instance, np.uint8).astype(np.float32).reshape(1, 4)}

        def to_answer(self, inputs, outputs):
            return {"sums": outputs["y"][0].tolist()}

    monkeypatch.setattr(predict_route, "_form_of", lambda hosted: Picture())
    with client_of({"lone": LoneInput()}) as client:
        path = "/v1/models/lone:predict"
        for kind in ("image/png", "image/jpeg", "IMAGE/PNG; x=y"):
            answer = client.post(path, content=b"\1\2\3\4", headers={"content-type": kind})
            assert answer.json()["predictions"] == [{"sums": [3.0, 7.0]}]
        assert client.post(path, content=b"\1", headers={"content-type": "audio/wav"}).status_code == 415
        wrong = client.post(path, json={"instances": [5]})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (415, "instances.0.image")


def test_a_picture_by_url_is_fetched_only_from_hosts_that_are_allowed(monkeypatch):
    class Picture:
        takes, gives, needs_model = "image", "classes", False
        request_schema = answer_schema = {}

        def to_inputs(self, instance):
            return {"x": np.frombuffer(base64.b64decode(instance["b64"]), np.uint8).astype(np.float32).reshape(1, 4)}

        def to_answer(self, inputs, outputs):
            return {"sums": outputs["y"][0].tolist()}

    class Shelf:
        def get(self, url, max_bytes):
            if url != "https://pictures.example/cat.png":
                raise RequestError("URLs on this host are not fetched", field="url")
            return b"\1\2\3\4"

    monkeypatch.setattr(predict_route, "_form_of", lambda hosted: Picture())
    path, url = "/v1/models/lone:predict", {"url": "https://pictures.example/cat.png"}
    with client_of({"lone": LoneInput()}, guard=Guard(fetcher=Shelf())) as client:
        assert client.post(path, json={"instances": [url]}).json()["predictions"] == [{"sums": [3.0, 7.0]}]
        other = client.post(path, json={"instances": [url, {"url": "http://169.254.169.254/"}]})
        assert (other.status_code, other.json()["error"]["param"]) == (400, "instances.1.url")
        many = client.post(path, json={"instances": [url] * 9})
        assert "too many URLs; found 9; wanted at most 8" in many.json()["error"]["message"]
    with client_of({"lone": LoneInput()}) as client:
        answer = client.post(path, json={"instances": [url]})
        assert answer.status_code == 400 and "are not fetched" in answer.json()["error"]["message"]


def test_a_form_that_needs_the_model_is_run_beside_the_engine(monkeypatch):
    class Writer:
        takes, gives, needs_model = "text", "text", True
        request_schema = answer_schema = {}

        def run(self, model, instance):
            if instance == "bad":
                raise RequestError("'text' is bad", field="text")
            return {"text": f"{model} {instance}"}

    class Bundle:
        path, model = None, "wrote"

    lone = LoneInput()
    monkeypatch.setattr("deepseek.serve.hosted._profile", lambda path: None)
    lone.bundle = Bundle()
    monkeypatch.setattr(predict_route, "_form_of", lambda hosted: Writer())
    with client_of({"lone": lone}) as client:
        answer = client.post("/v1/models/lone:predict", json={"instances": ["a", "b"]}).json()
        assert answer["predictions"] == [{"text": "wrote a"}, {"text": "wrote b"}]
        bad = client.post("/v1/models/lone:predict", json={"instances": ["a", "bad"]}).json()
        assert bad["error"]["param"] == "instances.1.text"


NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=15,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4), st.booleans())
def test_the_quick_parser_says_what_the_strict_one_says(value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only)
    try:
        body = text.encode()
    except UnicodeEncodeError:
        return
    assert outcome(body) == outcome(body, quick=False)


PIECES = st.sampled_from(
    ['{"a":', '"a":', "1", "-0", "1e5", "1E400", "0.1", "12345678901234567890", "[", "]", "{", "}", ",", ":", '"x"']
    + [
        '"a:b"',
        '"\\""',
        '"\\ud800"',
        "NaN",
        "-Infinity",
        "true",
        "null",
        " ",
        "\n",
        '{"a":1,"a":2}',
        '"\\u0061":',
        "1.",
    ]
)


@given(st.lists(PIECES, max_size=12).map(lambda parts: ('{"k":' + "".join(parts) + "}").encode()))
def test_the_quick_parser_refuses_what_the_strict_one_refuses(body):
    assert outcome(body) == outcome(body, quick=False)


def outcome(body, quick=True):
    loads = request_body._LOADS
    try:
        request_body._LOADS = loads if quick else None
        return json.dumps(parse_json(body, finite=True))
    except RequestError as error:
        return str(error)
    finally:
        request_body._LOADS = loads


def test_without_orjson_the_answers_are_the_same(client):
    from deepseek.serve.rest import json_bytes

    value = {"a": np.array([0.1, 1, 1e-30, 3e38], np.float32), "b": np.arange(3), "c": np.array([[True], [False]])}
    value |= {"d": np.float32(0.1), "e": ["é", None], "f": np.array(b"x", object).astype(object)[()].decode()}
    quick, plain = json.loads(json_bytes.dump_arrays(value)), json.loads(json_bytes._plainly(value))
    assert quick == plain
    assert json_bytes.dump_numbers({"a": np.array([np.nan])}) is None


@given(st.data(), st.sampled_from([name for name in DATATYPES if name != "BYTES"]))
def test_raw_bytes_there_and_back(data, datatype):
    dtype = numpy_dtype(datatype)
    shape = data.draw(st.lists(st.integers(0, 3), max_size=4))
    count = int(np.prod(shape))
    raw = data.draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if datatype == "BOOL":
        raw = bytes(byte & 1 for byte in raw)
    value = from_raw("x", datatype, shape, memoryview(raw))
    assert (value.shape, value.dtype) == (tuple(shape), dtype)
    assert to_raw(value) == raw


@given(st.lists(st.binary(max_size=5), max_size=6))
def test_bytes_there_and_back(items):
    value = np.empty(len(items), object)
    value[:] = items
    assert from_raw("x", "BYTES", [len(items)], memoryview(to_raw(value))).tolist() == items


@given(st.sampled_from(["INT8", "UINT16", "INT64", "UINT64"]), st.integers(-(2**66), 2**66))
def test_whole_numbers_are_kept_or_refused_never_wrapped(datatype, number):
    limits = np.iinfo(numpy_dtype(datatype))
    if limits.min <= number <= limits.max:
        assert from_json("x", datatype, [1], [number]).tolist() == [number]
    else:
        with pytest.raises(RequestError, match="outside"):
            from_json("x", datatype, [1], [number])
