"""Whatever a client sends over gRPC, the answer is a fit code with a sentence, and the server lives on."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek.serve.rpc import RpcLimits, messages
from deepseek.serve.tensor.datatypes import DATATYPES
from tests.fake_serving import FakeModel
from tests.fake_tensor import FakeTensorModel, LoneInput
from tests.rpc_client import GENERATE, INFERENCE, Refused, infer_request, rpc_of

FIT = {"INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED"}
NAMES = st.sampled_from(["echo", "three", "lone", "", "nobody", "../x", "lone\0", "é", "a" * 300])
TEXTS = st.one_of(st.sampled_from(["x", "flag", "word", "text_input", "sum", "y", "echo", ""]), st.text(max_size=8))
SIZES = st.one_of(st.integers(-2, 5), st.sampled_from([-(2**63), 2**31, 2**40, 2**62, 2**63 - 1, 0]))
SHAPES = st.one_of(st.sampled_from([[1, 4], [1, 3], [1], [2, 1], [1, 1]]), st.lists(SIZES, max_size=20))
KINDS = st.one_of(st.sampled_from(DATATYPES), st.text(max_size=6))
ELEMENTS = st.lists(st.binary(max_size=6), max_size=4).map(
    lambda items: b"".join(len(item).to_bytes(4, "little") + item for item in items)
)
LENGTHS = st.sampled_from([b"\xff\xff\xff\xff", b"\x04\0\0\0abc", b"\0\0\0", bytes(16), bytes(12), b"\2"])
RAW = st.one_of(ELEMENTS, LENGTHS, st.binary(max_size=40))
VALUES = {
    "bool_contents": st.booleans(),
    "int_contents": st.integers(-(2**31), 2**31 - 1),
    "int64_contents": st.integers(-(2**63), 2**63 - 1),
    "uint_contents": st.integers(0, 2**32 - 1),
    "uint64_contents": st.integers(0, 2**64 - 1),
    "fp32_contents": st.floats(width=32),
    "fp64_contents": st.floats(),
    "bytes_contents": st.binary(max_size=8),
}
PARAMETERS = st.dictionaries(
    st.one_of(
        st.sampled_from(["max_tokens", "temperature", "stop", "timeout", "seed", "stream", "response_format"]),
        st.text(max_size=8),
    ),
    st.one_of(
        st.booleans().map(lambda value: {"bool_param": value}),
        st.one_of(st.integers(1, 20), st.integers(-(2**63), 2**63 - 1)).map(lambda value: {"int64_param": value}),
        st.text(max_size=8).map(lambda value: {"string_param": value}),
        st.floats().map(lambda value: {"double_param": value}),
        st.integers(0, 2**64 - 1).map(lambda value: {"uint64_param": value}),
        st.just({}),
    ),
    max_size=3,
)


@st.composite
def contents(draw):
    fields = draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=2, unique=True))
    return {field: draw(st.lists(VALUES[field], max_size=6)) for field in fields}


@st.composite
def tensors(draw):
    tensor = {"name": draw(TEXTS), "datatype": draw(KINDS), "shape": draw(SHAPES)}
    if draw(st.booleans()):
        tensor["contents"] = draw(contents())
    if draw(st.integers(0, 9)) == 0:
        tensor["parameters"] = draw(PARAMETERS)
    return tensor


@st.composite
def infer_requests(draw):
    fields = {
        "model_name": draw(NAMES),
        "model_version": draw(st.sampled_from(["", "", "1", "2", "..", "é"])),
        "id": draw(st.text(max_size=8)),
        "inputs": draw(st.lists(tensors(), max_size=4)),
        "raw_input_contents": draw(st.lists(RAW, max_size=4)),
        "outputs": [{"name": name} for name in draw(st.lists(TEXTS, max_size=2))],
        "parameters": draw(PARAMETERS),
    }
    return messages.ModelInferRequest(**fields)


@st.composite
def generate_requests(draw):
    sampling = {
        "max_tokens": draw(st.one_of(st.integers(1, 9), st.integers(-(2**63), 2**63 - 1))),
        "stop": draw(st.lists(st.text(max_size=4), max_size=3)),
    }
    for name, values in (
        ("temperature", st.floats()),
        ("top_p", st.floats()),
        ("seed", st.integers(-1, 2**63 - 1)),
        ("n", st.integers(-1, 9)),
        ("json_schema", st.text(max_size=8)),
    ):
        if draw(st.integers(0, 3)) == 0:
            sampling[name] = draw(values)
    fields = {"model": draw(NAMES), "sampling": sampling}
    if draw(st.booleans()):
        fields["prompt"] = draw(st.text(max_size=20))
    turns = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "x"]), "content": st.text(max_size=9)})
    if draw(st.integers(0, 2)) == 0:
        fields["messages"] = draw(st.lists(turns, max_size=2))
    return messages.GenerateRequest(**fields)


@pytest.fixture(scope="module")
def client():
    models = {"echo": FakeModel(), "three": FakeTensorModel(), "lone": LoneInput()}
    with rpc_of(models, RpcLimits(idle_seconds=1.0)) as (client, _, _):
        yield client
        answer = client.call("ModelInfer", infer_request("lone", {"x": ("FP32", [[1.0, 2, 3, 4]])}, raw=False))
        assert list(answer.outputs[0].contents.fp32_contents) == [3, 7]  # after all that, the server lives on


def hold(answer, codes=FIT):
    """An answer, or a refusal that is the client's own doing and says why."""
    if isinstance(answer, Refused):
        assert answer.code in codes, answer
        assert answer.sentence and len(answer.sentence) < 2000, answer


def many(count):
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, suppress_health_check=checks, derandomize=True)


@many(250)
@given(infer_requests())
def test_any_infer_request(client, request):
    hold(client.call("ModelInfer", request))


@many(60)
@given(st.lists(infer_requests(), max_size=3))
def test_any_stream_of_infer_requests(client, requests):
    answers = client.infer_stream(requests)
    assert not any(isinstance(answer, Refused) for answer in answers)
    statuses = [answer.infer_response.parameters["status"].int64_param for answer in answers if answer.error_message]
    assert set(statuses) <= {400, 404}


@many(150)
@given(generate_requests())
def test_any_generate_request(client, request):
    for answer in client.generate(request):
        hold(answer)


METHODS = sorted(method.name for method in messages.pool().FindServiceByName(messages.INFERENCE).methods)


@many(120)
@given(st.sampled_from(METHODS), st.binary(max_size=60))
def test_random_bytes_as_a_message(client, name, raw):
    if name == "ModelStreamInfer":
        assert not any(isinstance(answer, Refused) for answer in client.infer_stream([raw]))
    else:
        hold(client.raw(INFERENCE + name, raw))


@many(100)
@given(infer_requests(), st.data())
def test_a_message_with_some_bytes_changed(client, request, data):
    raw = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3)) if raw else 0):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    hold(client.raw(INFERENCE + "ModelInfer", bytes(raw)))


@many(60)
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20), st.binary(max_size=20))
def test_any_method(client, name, raw):
    hold(client.raw("/" + name.lstrip("/"), raw))


@many(100)
@given(
    st.sampled_from(
        [
            "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            "grpc.health.v1.Health/Check",
            "deepseek.v1.TextGeneration/Generate",
            "deepseek.v1.SpeechRecognition/StreamingRecognize",
        ]
    ),
    st.binary(max_size=40),
)
def test_random_bytes_to_the_other_services(client, path, raw):
    found = (
        client.stream("/" + path, raw, messages.ServerLiveRequest)
        if path.endswith("Generate")
        else [client.raw("/" + path, raw)]
    )
    for answer in found:
        hold(answer)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x0a\x02\xc3\x28",  # model_name that is no UTF-8
        b"\x0a\xff\xff\xff\xff\x0f",  # a length beyond the message
        b"\x2a" * 10_000,
        bytes.fromhex("2a02") * 5_000,
        b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a varint of eleven bytes
    ],
)
def test_broken_wire_bytes(client, raw):
    refusal = client.raw(INFERENCE + "ModelInfer", raw)
    assert refusal.code == "INVALID_ARGUMENT"
    (refusal,) = client.stream(GENERATE, b"\x12\x02\xc3\x28", messages.GenerateResponse)
    assert refusal.code == "INVALID_ARGUMENT"
