"""What a careless or hostile client may send to the tensor routes and the newer text fields: each with its answer."""

from __future__ import annotations

import json
import struct

import pytest

from deepseek.serve.rest import body as request_body
from deepseek.serve.rest.body import TENSOR_BODY_LIMIT
from tests.fake_serving import FakeModel
from tests.fake_tensor import FakeTensorModel, LoneInput
from tests.rest_client import client_of

INFER, PREDICT = "/v2/models/lone/infer", "/v1/models/lone:predict"
COMPLETIONS, CHAT, EMBEDDINGS = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
GENERATE = "/v2/models/say/generate"
TEXT_ROUTES = {
    COMPLETIONS: '"model": "say", "prompt": "x"',
    CHAT: '"model": "say", "messages": [{"role": "user", "content": "x"}]',
    GENERATE: '"text_input": "x"',
}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client():
    models = {"three": FakeTensorModel(), "lone": LoneInput(), "say": FakeModel("fine ", end=True)}
    with client_of(models) as made:
        yield made


@pytest.fixture(autouse=True)
def _the_server_still_answers(client):
    yield
    good = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    assert client.post(INFER, json={"inputs": [good]}).json()["outputs"][0]["data"] == [3.0, 7.0]


def told(client, path, content, **headers):
    """Return status and message of a refusal, whose form must be that of the route."""
    answer = client.post(path, content=content, headers={**JSON, **headers})
    body = answer.json()
    if path.startswith("/v2"):
        assert set(body) == {"error"}
        return answer.status_code, body["error"]
    assert set(body) == {"error", "request_id"}
    return answer.status_code, body["error"]["message"]


@pytest.mark.parametrize("path", TEXT_ROUTES)
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_tokens", "1000000000", "'max_tokens' is 1000000000; wanted less than or equal to 16384"),
        ("max_tokens", "1e9", "'max_tokens' is 1000000000.0; wanted a valid integer"),
        ("max_tokens", "-1", "'max_tokens' is -1; wanted greater than or equal to 1"),
        ("max_tokens", "true", "'max_tokens' is True; wanted a valid integer"),
        ("max_tokens", '"5"', "'max_tokens' is '5'; wanted a valid integer"),
        ("max_tokens", "NaN", "'max_tokens' is nan; wanted a valid integer"),
        ("temperature", "NaN", "'temperature' is nan; wanted a finite number"),
        ("top_p", "2", "'top_p' is 2; wanted less than or equal to 1"),
        ("seed", str(2**80), f"'seed' is {2**80}; wanted less than or equal to 9223372036854775807"),
    ],
)
def test_a_number_out_of_bounds_has_this_answer(client, path, field, value, message):
    assert told(client, path, f'{{{TEXT_ROUTES[path]}, "{field}": {value}}}') == (400, message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ('"n": 1000000', "'n' is 1000000; wanted less than or equal to 8"),
        (f'"stop": {json.dumps(["x"] * 100_000)}', "'stop' has 100000 items; wanted at most 16 items"),
        ('"response_format": {"type": "xml"}', "'response_format.type' is 'xml'; wanted 'text', 'json_object' or "),
        ('"response_format": {"type": "json_schema"}', "'response_format' is of type dict; wanted \"json_schema\" "),
        ('"response_format": "json_object"', "'response_format' is 'json_object'; wanted an object"),
        ('"dimensions": 5', "'dimensions' is not supported by this server; found 5; leave it out"),
    ],
    ids=range(6),
)
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_other_fields_of_texts(client, path, fields, message):
    status, found = told(client, path, f"{{{TEXT_ROUTES[path]}, {fields}}}")
    assert (status, found[: len(message)]) == (400, message)


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        (COMPLETIONS, '"logprobs": 99', "'logprobs' is 99; wanted less than or equal to 5"),
        (CHAT, '"logprobs": 99', "'logprobs' is 99; wanted a valid boolean"),
        (COMPLETIONS, '"top_logprobs": 1', "unknown field 'top_logprobs'; did you mean 'logprobs' or 'top_p'?"),
        (CHAT, '"top_logprobs": true', "'top_logprobs' is True; wanted a valid integer"),
        (COMPLETIONS, '"session_id": "ok"', "unknown field 'session_id'; "),
        (CHAT, '"session_id": "../../etc"', "'session_id' is '../../etc'; wanted pattern "),
        (GENERATE, '"n": 1000000', "unknown field 'n'; "),
        (GENERATE, f'"stop": {json.dumps(["x"] * 100_000)}', "'stop' has 100000 items; wanted at most 16 items"),
    ],
    ids=range(8),
)
def test_fields_that_one_kind_of_route_has(client, path, fields, message):
    status, found = told(client, path, f"{{{TEXT_ROUTES[path]}, {fields}}}")
    assert (status, found[: len(message)]) == (400, message)


@pytest.mark.parametrize("path", [*TEXT_ROUTES, INFER, PREDICT, EMBEDDINGS])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "the body is nested more than 16 levels deep or has brackets"),
        (b"[" * 100_000, "the body is nested more than 16 levels deep or has brackets"),
        (b'{"model": "say", "model": "say"}', "the key 'model' appears twice; keep one of them"),
        (b'{"model": "\\ud800"}', "a text has half of a surrogate pair; wanted whole characters"),
        (b'{"\\udfff": 1}', "a text has half of a surrogate pair; wanted whole characters"),
        (b'{"a": "\xff"}', "the body is not UTF-8; found byte 0xff at 7"),
        (b"[1]", 'the body is not a JSON object; wanted {"prompt": "...", ...}'),
        (b"", "the body is not JSON; found Expecting value at character 0"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "the body is not JSON that can be read; wanted numbers of usual length"),
    ],
    ids=range(9),
)
def test_a_body_that_is_no_proper_object_has_this_answer(client, path, content, message):
    status, found = told(client, path, content)
    assert (status, found[: len(message)]) == (400, message)


def test_a_body_of_100_mb_is_refused_before_it_is_read(client):
    read = 0

    def parts():
        nonlocal read
        while read < 100 << 20:
            read += 1 << 20
            yield b"x" * (1 << 20)

    for path, limit in ((COMPLETIONS, 1 << 20), (INFER, TENSOR_BODY_LIMIT), (PREDICT, TENSOR_BODY_LIMIT)):
        head = client.post(path, content=b"{}", headers={**JSON, "content-length": str(10**10)})
        assert (head.status_code, head.headers["connection"]) == (413, "close")
        read = 0
        answer = client.post(path, content=parts(), headers=JSON)
        assert answer.status_code == 413
        assert f"at most {limit} bytes" in answer.text


def test_a_body_that_does_not_come_gets_408(monkeypatch):
    import asyncio

    from deepseek.errors import RequestError

    monkeypatch.setattr(request_body, "BODY_SECONDS", 0.05)

    async def slow():
        await asyncio.sleep(30)

    async def ask():
        await request_body.read_body({"headers": []}, slow, 10)

    with pytest.raises(RequestError, match=r"did not arrive within 0.05 s") as refused:
        asyncio.run(ask())
    assert refused.value.status == 408


def test_a_body_in_pieces_is_one_and_a_cancelled_wait_ends():
    import asyncio

    async def ask():
        messages = [{"type": "http.request", "body": part, "more_body": part != b"c"} for part in (b"a", b"b", b"c")]

        async def receive():
            await asyncio.sleep(0)
            return messages.pop(0)

        whole = await request_body.read_body({"headers": []}, receive, 10)
        waiting = asyncio.ensure_future(request_body.read_body({"headers": []}, asyncio.Event().wait, 10))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return whole

    assert asyncio.run(ask()) == b"abc"


def x(**changes):
    return {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4], **changes}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "'inputs' is missing; add 'inputs'"),
        ({"inputs": []}, "'inputs' has 0 items; wanted at least 1 item"),
        ({"inputs": [x()] * 65}, "'inputs' has 65 items; wanted at most 64 items"),
        ({"inputs": [x(), x()]}, "an input is given twice; found 'x'"),
        ({"inputs": [x(name="y")]}, "unknown input 'y'; known names: x"),
        ({"inputs": [x(name="\u202e" * 300)]}, "'inputs.0.name' is "),
        ({"inputs": [x()], "inputz": 1}, "unknown field 'inputz'; did you mean 'inputs'?"),
        ({"inputs": [x(shape=[4])]}, "'x' has the wrong shape; found [4]; wanted [any, 4], none of them 0"),
        ({"inputs": [x(shape=[1, 4.0])]}, "'inputs.0.shape.1' is 4.0; wanted a valid integer"),
        ({"inputs": [x(shape=[-1, 4])]}, "'inputs.0.shape.0' is -1; wanted greater than or equal to 0"),
        ({"inputs": [x(shape=[2**62, 4])]}, "'inputs.0.shape.0' is 4611686018427387904; wanted less than"),
        ({"inputs": [x(shape=[2**40] * 16)]}, "input 'x': it is too large; found the shape [1099511627776, "),
        ({"inputs": [x(shape=[0, 2**40, 2**40], data=[])]}, "input 'x': it is too large; found the shape [0, "),
        ({"inputs": [x(shape=[1] * 17)]}, "'inputs.0.shape' has 17 items; wanted at most 16 items"),
        ({"inputs": [x(shape=[0, 4], data=[])]}, "'x' has the wrong shape; found [0, 4]; wanted "),
        ({"inputs": [x(shape=[2, 4])]}, "input 'x': 'data' does not fill 'shape'; found 4 elements; wanted 8 for"),
        ({"inputs": [x(shape=True)]}, "'inputs.0.shape' is True; wanted a valid list"),
        ({"inputs": [x(datatype="FP32 ")]}, "'inputs.0.datatype' is 'FP32 '; wanted 'BOOL', 'UINT8'"),
        ({"inputs": [x(datatype="FP64")]}, "'x' has the wrong datatype; found float64; wanted FP32"),
        ({"inputs": [x(datatype="INT8", data=[1, 2, 3, 400])]}, "input 'x': 'data' has a number outside the datatype"),
        ({"inputs": [x(datatype="UINT8", data=[1, 2, 3, -1])]}, "input 'x': 'data' has a number outside the datatype"),
        ({"inputs": [x(datatype="BF16")]}, "input 'x': BF16 has no form in JSON; send it as binary data"),
        ({"inputs": [x(data=[1, 2, 3, True])]}, "input 'x': 'data' has elements of another kind; found bool; wanted"),
        ({"inputs": [x(data=[1, 2, 3, None])]}, "input 'x': 'data' has elements of another kind; found null; wanted"),
        ({"inputs": [x(data=[1, 2, 3, "4"])]}, "input 'x': 'data' has elements of another kind; found str; wanted"),
        ({"inputs": [x(data=[[1, 2], [3]])]}, "input 'x': 'data' is ragged; wanted lists of one length on each level"),
        ({"inputs": [x(data=[[1, 2], [3, 4]])]}, "input 'x': 'data' does not fill 'shape'; found lists nested as"),
        ({"inputs": [x(data=[1, 2, 3, 1e39])]}, "input 'x': 'data' has a number outside the datatype's range"),
        ({"inputs": [x(data=[1, 2, 3, 10**300])]}, "input 'x': 'data' has a number outside the datatype's range"),
        ({"inputs": [x(data="1234")]}, "'inputs.0.data' is '1234'; wanted a valid list"),
        ({"inputs": [x(data=None)]}, "input 'x': its data is missing or there twice; found neither; wanted either"),
        ({"inputs": [x(parameters={"binary_data_size": 16})]}, "input 'x': its data is missing or there twice; found"),
        ({"inputs": [x(parameters={"shared_memory_region": "r"})]}, "unknown field 'inputs.0.parameters.shared_m"),
        ({"inputs": [x()], "outputs": [{"name": "z"}]}, "unknown output 'z'; known names: y"),
        ({"inputs": [x()], "outputs": [{"name": "y"}, {"name": "y"}]}, "output 'y' is asked for twice; "),
        ({"inputs": [x()], "parameters": {"timeout": -1}}, "'timeout' is -1; wanted greater than or equal to 1"),
        ({"inputs": [x()], "parameters": {"max_tokens": 5}}, "unknown field 'max_tokens'; "),
        ({"inputs": [x()], "id": 7}, "'id' is 7; wanted a valid string"),
        ({"inputs": [x()], "id": "i" * 257}, "'id' is 'iii"),
    ],
)
def test_wrong_tensors_in_json_have_this_answer(client, body, message):
    status, found = told(client, INFER, json.dumps(body))
    assert (status, found[: len(message)]) == (400, message)
    assert len(found) < 400


def test_constants_that_json_does_not_know(client):
    for word in ("NaN", "Infinity", "-Infinity"):
        content = json.dumps({"inputs": [x(data=[1, 2, 3, "@"])]}).replace('"@"', word)
        assert told(client, INFER, content) == (
            400,
            f"the body has {word}, which JSON does not know; wanted finite numbers",
        )
        content = f'{{"instances": [[1, 2, 3, {word}]]}}'
        assert told(client, PREDICT, content)[0] == 400
    status, found = told(client, INFER, json.dumps({"inputs": [x(data=[1, 2, 3, "@"])]}).replace('"@"', "1e400"))
    assert (status, found[:39]) == (400, "input 'x': 'data' has a number outside ")


RAW = struct.pack("<4f", 1, 2, 3, 4)


def raw_x(size, **changes):
    given = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": size}, **changes}
    return {"inputs": [given]}


@pytest.mark.parametrize(
    ("head", "raw", "message"),
    [
        (raw_x(15), RAW, "input 'x': the raw bytes do not fill 'shape'; found 15 bytes; wanted 16 for FP32 [1, 4]"),
        (
            raw_x(17),
            RAW,
            "the raw bytes behind the JSON are not what the inputs say; found 16 bytes; wanted 17 or more",
        ),
        (raw_x(16), RAW + b"x", "the raw bytes behind the JSON are not what the inputs say; found 17 bytes; wanted 16"),
        (raw_x(-1), RAW, "'inputs.0.parameters.binary_data_size' is -1; wanted greater than or equal to 0"),
        (raw_x(2**62), RAW, "'inputs.0.parameters.binary_data_size' is 4611686018427387904; wanted less than"),
        (raw_x("16"), RAW, "'inputs.0.parameters.binary_data_size' is '16'; wanted a valid integer"),
        (
            raw_x(16, shape=[2**40, 2**40]),
            RAW,
            "input 'x': it is too large; found the shape [1099511627776, 1099511627776]; wanted fewer than 2147483648",
        ),
        (raw_x(0, shape=[0, 2**40, 2**40]), b"", "input 'x': it is too large; found the shape [0, "),
        (raw_x(16, shape=[4]), RAW, "'x' has the wrong shape; found [4]; wanted [any, 4]"),
        (raw_x(16, datatype="BOOL", shape=[16]), RAW, "input 'x': a raw BOOL is neither 0 nor 1"),
        (raw_x(8, datatype="BF16"), RAW[:8], "'x' has the wrong datatype; found uint16; wanted FP32"),
        ({"inputs": [x()]}, RAW, "the raw bytes behind the JSON are not what the inputs say; found 16 bytes; wanted 0"),
    ],
)
def test_wrong_raw_tensors_have_this_answer(client, head, raw, message):
    text = json.dumps(head).encode()
    status, found = told(client, INFER, text + raw, **{"inference-header-content-length": str(len(text))})
    assert (status, found[: len(message)]) == (400, message)


@pytest.mark.parametrize(
    "length", ["-1", "999", "1e3", "0x10", "", "99999999999999999999999", "12, 12", "\u0663", "5", "15"]
)
def test_a_wrong_header_length_has_its_answer(client, length):
    text = json.dumps(raw_x(16)).encode()
    headers = {**JSON, "inference-header-content-length": length.encode("utf-8")}
    answer = client.post(INFER, content=text + RAW, headers=headers)
    assert answer.status_code == 400
    if length not in ("5", "15"):  # those cut the JSON short
        wanted = f"Inference-Header-Content-Length is not a length of this body; found {ascii(length)[:32]}"
        assert answer.json()["error"].startswith(wanted) or length == "\u0663"


def word(raw, shape):
    given = {"name": "word", "shape": shape, "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    rest = [
        {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]},
        {"name": "flag", "shape": [1], "datatype": "BOOL", "data": [True]},
    ]
    return {"inputs": [given, *rest]}


@pytest.mark.parametrize(
    ("raw", "shape", "message"),
    [
        (b"\x05\0\0\0abcd", [1, 1], "input 'word': a BYTES element is longer than what was sent; found element 0"),
        (b"\xff\xff\xff\xff", [1, 1], "input 'word': a BYTES element is longer than what was sent; found element 0"),
        (b"\x01\0\0", [1, 1], "input 'word': a BYTES element is longer than what was sent; found element 0"),
        (b"\0\0\0\0", [1, 2], "input 'word': there are fewer BYTES elements than 'shape' says; found 1; wanted 2"),
        (b"\0\0\0\0", [1, 2**39], "input 'word': it is too large; found the shape [1, 549755813888]; wanted "),
        (b"\0\0\0\0" * 3, [1, 2], "input 'word': there are more BYTES elements than 'shape' says; wanted 2 elements"),
        (b"", [1, 1], "input 'word': there are fewer BYTES elements than 'shape' says; found 0; wanted 1"),
    ],
)
def test_wrong_framing_of_bytes_has_this_answer(client, raw, shape, message):
    text = json.dumps(word(raw, shape)).encode()
    headers = {"inference-header-content-length": str(len(text))}
    status, found = told(client, "/v2/models/three/infer", text + raw, **headers)
    assert (status, found[: len(message)]) == (400, message)


@pytest.mark.parametrize("size", [0, 3, 12, 15, 20])
def test_a_raw_body_that_is_no_row_has_its_answer(client, size):
    headers = {"inference-header-content-length": "0", "content-type": "application/octet-stream"}
    status, found = told(client, INFER, b"\0" * size, **headers)
    assert (status, found[:45]) == (400, "input 'x': the raw bytes do not fill 'shape';")
    several = told(client, "/v2/models/three/infer", b"\0" * size, **headers)
    assert several == (400, "a body without JSON is for models with one input; found 3; wanted JSON before")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "'instances' is no list of instances; found NoneType; wanted 1 to 256"),
        ('{"instances": []}', "'instances' is no list of instances; found 0 of them; wanted 1 to 256"),
        (json.dumps({"instances": [[1, 2, 3, 4]] * 257}), "'instances' is no list of instances; found 257 of them"),
        ('{"instances": {"x": [1, 2, 3, 4]}}', "'instances' is no list of instances; found dict; wanted 1 to 256"),
        ('{"instances": [[1, 2, 3, 4]], "signature_name": "s"}', "unknown field 'signature_name'; send "),
        ('{"instances": [[1, 2, 3]]}', "'x' has the wrong shape; found [3]; wanted [4]"),
        ('{"instances": [[[1, 2, 3, 4]]]}', "'x' has the wrong shape; found [1]; wanted [4]"),
        ('{"instances": [5]}', "'x' has the wrong shape; found []; wanted [4]"),
        ('{"instances": [null]}', "'x' has the wrong shape; found []; wanted [4]"),
        ('{"instances": [{"y": [1, 2, 3, 4]}]}', "unknown input 'y'; known names: x"),
        ('{"instances": [{}]}', "input 'x' is missing; wanted x"),
        ('{"instances": [[1, 2, 3, "4"]]}', "input 'x': 'data' has elements of another kind; found str"),
        (
            '{"instances": [[1, 2, 3, 4], [1, 2, 3, true]]}',
            "input 'x': 'data' has elements of another kind; found bool",
        ),
    ],
)
def test_wrong_instances_have_this_answer(client, content, message):
    status, found = told(client, PREDICT, content)
    assert (status, found[: len(message)]) == (400, message)


def test_the_place_of_a_wrong_instance_is_told(client):
    answer = client.post(PREDICT, json={"instances": [[1, 2, 3, 4], [1, 2, 3]]}).json()
    assert answer["error"]["param"] == "instances.1.x"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/nobody/infer", 404),
        ("/v2/models/lone/versions/9/infer", 404),
        ("/v2/models/lone/versions//infer", 404),
        ("/v2/models/%00/infer", 404),
        ("/v2/models/..%2f..%2fetc/infer", 404),
        ("/v2/models//infer", 404),
        ("/v2/models/a/b/infer", 404),
        ("/v2/models/" + "x" * 1000 + "/infer", 404),
        ("/v1/models/nobody:predict", 404),
        ("/v1/models/lone/versions/9:predict", 404),
        ("/v1/models/:predict", 405),
        ("/v1/models/lone:explain", 404),
        ("/v1/models/say:predict", 400),
        ("/v2/models/lone/generate", 400),
    ],
)
def test_names_and_versions_that_are_not_served(client, path, status):
    answer = client.post(path, json={"inputs": [x()], "instances": [[1, 2, 3, 4]]}) if "generate" not in path else (
        client.post(path, json={"text_input": "x"})
    )  # fmt: skip
    # `:explain` is a model's name to the list of models, which is only read
    assert answer.status_code == (405 if "explain" in path else status)
    body = answer.json()
    assert set(body) == ({"error"} if path.startswith("/v2") else {"error", "request_id"})


@pytest.mark.parametrize("path", [INFER, PREDICT, "/v2/models/lone/versions/1/infer", "/v2/repository/index"])
def test_another_method_gets_405(client, path):
    answer = client.get(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_an_error_of_the_model_tells_no_internals(caplog):
    model = LoneInput()
    with client_of({"lone": model}) as client:
        model.failure = RuntimeError("secret detail")
        for path, body in ((INFER, {"inputs": [x()]}), (PREDICT, {"instances": [[1, 2, 3, 4]]})):
            answer = client.post(path, json=body)
            assert answer.status_code == 500
            assert "secret" not in answer.text
            assert answer.headers["x-request-id"] in answer.text
        model.failure = None
        assert client.post(PREDICT, json={"instances": [[1, 2, 3, 4]]}).status_code == 200
    assert "secret detail" in caplog.text


def test_embeddings_are_bounded(client):
    def message(**fields):
        status, text = told(client, EMBEDDINGS, json.dumps({"model": "say", **fields}))
        assert status == 400
        return text

    assert message() == "'input' is missing; add 'input'"
    assert message(input=[]).startswith("'input' is of type list; wanted a text, a list of texts")
    assert message(input=["x"] * 65).startswith("'input' does not fit the rest; wanted at most 64 texts")
    assert message(input="x", encoding_format="hex").startswith(
        "'encoding_format' is 'hex'; wanted 'float' or 'base64'"
    )
    assert message(input=[[999]]) == "'input' has a token that the model does not know; wanted token ids below 257"
    assert "longer than the model's context" in message(input="x" * 5000)
    assert told(client, EMBEDDINGS, '{"model": "lone", "input": "x"}')[0] == 400
