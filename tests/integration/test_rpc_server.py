"""The gRPC server on a real socket: inference, streams, health, reflection, keys, bounds, TLS, cancelling, its end."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from deepseek.errors import ConfigError, RequestError
from deepseek.serve.rest.answer import Helpers
from deepseek.serve.rest.door import Guard
from deepseek.serve.rpc import RpcLimits, RpcServer, messages
from deepseek.serve.security.audit import AuditLog
from deepseek.serve.security.keys import KeyRing
from deepseek.serve.security.limits import RateLimiter
from deepseek.serve.security.tls import TlsFiles
from deepseek.serve.service import Service
from tests.fake_serving import FakeModel
from tests.fake_tensor import FakeTensorModel, LoneInput
from tests.rpc_client import GENERATE, INFERENCE, Refused, RpcClient, infer_request, rpc_of

LONE = {"x": ("FP32", np.array([[1, 2, 3, 4]], np.float32))}


@pytest.fixture(scope="module")
def served():
    with rpc_of({"echo": FakeModel(), "three": FakeTensorModel(), "lone": LoneInput()}) as (client, server, service):
        yield client, server, service


@pytest.fixture
def client(served):
    return served[0]


def until(holds, seconds=5.0):
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_raw_tensors_are_answered_raw_and_typed_ones_typed(client):
    raw = client.call("ModelInfer", infer_request("lone", LONE, id="a7"))
    assert (raw.model_name, raw.model_version, raw.id) == ("lone", "1", "a7")
    (output,) = raw.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", "FP32", [1, 2])
    assert np.frombuffer(raw.raw_output_contents[0], np.float32).tolist() == [3, 7]
    typed = client.call("ModelInfer", infer_request("lone", LONE, raw=False))
    assert list(typed.outputs[0].contents.fp32_contents) == [3, 7]
    assert not typed.raw_output_contents and typed.id == ""


@pytest.mark.parametrize("raw", [True, False])
def test_several_inputs_and_a_chosen_output(client, raw):
    words = np.array([[b"ab", b""], [b"\xff", b"xyz"]], object)
    arrays = {
        "x": ("FP32", np.array([[1, 2, 3], [4, 5, 6]], np.float32)),
        "word": ("BYTES", words),
        "flag": ("BOOL", np.array([True, False])),
    }
    request = infer_request("three", arrays, raw=raw)
    whole = client.call("ModelInfer", request)
    assert [output.name for output in whole.outputs] == ["sum", "echo"]
    request.outputs.add(name="echo")
    (echo,) = client.call("ModelInfer", request).outputs
    assert (echo.name, list(echo.shape)) == ("echo", [2, 2])
    if not raw:
        assert list(whole.outputs[0].contents.fp32_contents) == [12, 15]
        assert list(echo.contents.bytes_contents) == [b"ba", b"", b"\xff", b"zyx"]


def test_metadata(client):
    server = client.call("ServerMetadata")
    assert (server.name, list(server.extensions)) == ("deepseek", ["model_stream_infer", "model_repository"])
    model = client.call("ModelMetadata", messages.ModelMetadataRequest(name="three"))
    assert (model.name, list(model.versions), model.platform) == ("three", ["1"], "deepseek_tensor")
    assert [(spec.name, spec.datatype, list(spec.shape)) for spec in model.inputs] == [
        ("x", "FP32", [-1, 3]),
        ("flag", "BOOL", [-1]),
        ("word", "BYTES", [-1, -1]),
    ]
    text = client.call("ModelMetadata", messages.ModelMetadataRequest(name="echo"))
    assert [spec.name for spec in (*text.inputs, *text.outputs)] == ["text_input", "text_output"]
    assert client.call("ServerLive").live and client.call("ServerReady").ready
    assert client.call("ModelReady", messages.ModelReadyRequest(name="lone", version="1")).ready
    assert client.call("ModelReady", messages.ModelReadyRequest(name="nobody")).code == "NOT_FOUND"


def text_request(text, **parameters):
    request = infer_request("echo", {"text_input": ("BYTES", np.array([text.encode()], object))}, raw=False)
    for name, value in parameters.items():
        kind = {int: "int64_param", float: "double_param", str: "string_param", bool: "bool_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    return request


def test_text_in_one_answer_and_in_a_stream(client):
    request = text_request("abcé", max_tokens=9, temperature=0.0)
    whole = client.call("ModelInfer", request).outputs[0].contents.bytes_contents[0].decode()
    answers = client.infer_stream([request])
    pieces = [answer.infer_response.outputs[0].contents.bytes_contents[0].decode() for answer in answers]
    assert "".join(pieces) == whole
    finals = [answer.infer_response.parameters["triton_final_response"].bool_param for answer in answers]
    assert finals == [False] * (len(answers) - 1) + [True]
    last = answers[-1].infer_response.parameters
    assert last["finish_reason"].string_param == "length"
    assert (last["prompt_tokens"].int64_param, last["completion_tokens"].int64_param) == (5, 9)


def test_a_stream_goes_on_after_a_question_that_fails(client):
    bad = infer_request("lone", {"x": ("FP32", np.zeros((1, 3), np.float32))}, id="bad")
    questions = [bad, b"\xff\xff", infer_request("nobody", {}), infer_request("lone", LONE, id="good")]
    first, second, third, good = client.infer_stream(questions)
    assert "wrong shape" in first.error_message and first.infer_response.id == "bad"
    statuses = [answer.infer_response.parameters["status"].int64_param for answer in (first, second, third)]
    assert statuses == [400, 400, 404]
    assert good.infer_response.id == "good" and not good.error_message


def generate_request(**fields):
    sampling = fields.pop("sampling", {})
    request = messages.GenerateRequest(**fields)
    for name, value in sampling.items():
        if name == "stop":
            request.sampling.stop.extend(value)
        else:
            setattr(request.sampling, name, value)
    return request


def test_generating_for_several_answers_with_stop_strings(client):
    answers = client.generate(generate_request(model="echo", prompt="abcdef", sampling={"n": 2, "stop": ["c"]}))
    texts = ["".join(a.text for a in answers if a.choice == choice) for choice in range(2)]
    assert texts == ["fed", "fed"]
    reasons = [a.finish_reason for a in answers if a.finish_reason]
    assert reasons == ["stop", "stop"]
    usage = answers[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (6, 8, 14)
    assert not any(a.HasField("usage") for a in answers[:-1])


def test_generating_in_a_conversation_and_by_a_schema(client):
    turns = [{"role": "user", "content": "hi"}]
    answers = client.generate(generate_request(model="echo", messages=turns, sampling={"max_tokens": 3}))
    assert "".join(a.text for a in answers) == "\nih"
    schema = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}})
    answers = client.generate(generate_request(model="echo", prompt="x", sampling={"json_schema": schema}))
    assert json.loads("".join(a.text for a in answers)) == {"a": 1}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "found both"),
        ({}, "found neither"),
        ({"prompt": "a", "sampling": {"json_schema": "["}}, "'json_schema' is no JSON object"),
        ({"messages": [{"role": "robot", "content": "b"}]}, "messages.0.role"),
        ({"model": "lone", "prompt": "a"}, "not a language model"),
    ],
)
def test_what_generate_refuses(client, fields, told):
    (refusal,) = client.generate(generate_request(**{"model": "echo", **fields}))
    assert refusal.code == "INVALID_ARGUMENT" and told in refusal.sentence


def test_health_and_reflection(served):
    client, server, _ = served
    health = health_pb2_grpc.HealthStub(client.channel)
    for name in ("", "echo", "lone", messages.INFERENCE, messages.GENERATION):
        assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == 1
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert caught.value.code().name == "NOT_FOUND"
    database = ProtoReflectionDescriptorDatabase(client.channel)
    assert set(database.get_services()) > {messages.INFERENCE, messages.GENERATION, "grpc.health.v1.Health"}
    assert database.FindFileContainingSymbol("inference.ModelInferRequest").package == "inference"
    assert database.FindFileByName("text_generation.proto").service[0].name == "TextGeneration"
    later = client.raw("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", b"")
    assert isinstance(later, bytes)


def test_health_is_watched_while_a_model_becomes_ready_and_the_server_ends():
    model = FakeModel()
    model.may_verify.clear()
    service = Service({"slow": model})
    service.start()
    checking = threading.Thread(target=service.verify)
    checking.start()
    server = RpcServer(service)
    with server:
        channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")
        seen = []

        def watch():
            try:
                request = health_pb2.HealthCheckRequest(service="slow")
                for answer in health_pb2_grpc.HealthStub(channel).Watch(request):
                    seen.append(answer.status)
            except grpc.RpcError as error:
                seen.append(error.code().name)

        watcher = threading.Thread(target=watch)
        watcher.start()
        until(lambda: seen == [2])
        assert RpcClient(0, channel=channel).call("ServerReady").ready is False
        assert RpcClient(0, channel=channel).call("ModelReady", messages.ModelReadyRequest(name="slow")).ready is False
        model.may_verify.set()
        until(lambda: seen == [2, 1])
        server.close()
        watcher.join()
        assert seen == [2, 1, 2, "UNAVAILABLE"]
        channel.close()
    checking.join()
    service.close()


def test_keys_rates_and_the_audit_log(tmp_path):
    audit = AuditLog(tmp_path / "audit.jsonl")
    guard = Guard(
        keys=KeyRing.of_secret("secret-key", "me"), limiter=RateLimiter(60, burst=3, concurrent=2), audit=audit
    )
    with rpc_of({"lone": LoneInput()}, guard=guard) as (stranger, server, _):
        channel = stranger.channel
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status == 1
        assert stranger.call("ServerLive").live
        for path in (INFERENCE + "ModelInfer", GENERATE, "/no/such", INFERENCE + "RepositoryIndex"):
            refusal = stranger.raw(path) if path != GENERATE else stranger.generate(generate_request(prompt="a"))[0]
            expected = "UNAUTHENTICATED" if path != INFERENCE + "RepositoryIndex" else "RESOURCE_EXHAUSTED"
            assert refusal.code == expected  # the fourth guess is over the rate
        friend = RpcClient(server.port, key="secret-key", channel=channel)
        for _ in range(3):
            assert friend.call("ModelInfer", infer_request("lone", LONE)).model_name == "lone"
        late = friend.call("ModelInfer", infer_request("lone", LONE))
        assert late.code == "RESOURCE_EXHAUSTED" and "too many requests" in late.sentence
        assert late.trailing["retry-after"] == "1" and len(late.trailing["x-request-id"]) == 32
        questions = friend.infer_stream([infer_request("lone", LONE)] * 2)
        assert questions[0].code == "RESOURCE_EXHAUSTED"
    audit.close()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    answered = [line for line in lines if line["status"] == 200 and line["route"].endswith("ModelInfer")]
    assert [(line["key"], line["model"], line["version"]) for line in answered] == [("me", "lone", "1")] * 3
    assert not any("secret" in json.dumps(line) for line in lines)


def test_metrics_count_every_outcome():
    seen = []

    class Counting:
        def request(self, route, status, seconds):
            seen.append((route, status))

        def answer(self, model, done):
            seen.append((model, done.tokens))

    with rpc_of({"lone": LoneInput(), "echo": FakeModel()}, helpers=Helpers(Counting())) as (client, _, _):
        client.call("ModelInfer", infer_request("lone", LONE))
        client.raw(INFERENCE + "ModelInfer", b"\xff")
        client.raw("/secret/path")
        client.generate(generate_request(model="echo", prompt="a", sampling={"max_tokens": 2}))
    infer = "inference.GRPCInferenceService/ModelInfer"
    assert seen == [
        (infer, 200),
        (infer, 400),
        ("other", 501),
        ("echo", 2),
        ("deepseek.v1.TextGeneration/Generate", 200),
    ]


def test_an_error_of_the_server_tells_its_id_and_nothing_else(caplog):
    model = LoneInput()
    with rpc_of({"lone": model}) as (client, _, _):
        model.failure = RuntimeError("secret detail")
        refusal = client.call("ModelInfer", infer_request("lone", LONE))
    assert refusal.code == "INTERNAL" and refusal.trailing["x-request-id"] in refusal.sentence
    assert "secret" not in refusal.sentence and "secret detail" in caplog.text


def test_a_client_that_goes_away_frees_the_engine():
    model = FakeModel(step_seconds=0.005)
    with rpc_of({"echo": model}) as (client, _, service):
        engine = service.find("echo").engine
        request = generate_request(model="echo", prompt="a", sampling={"max_tokens": 4000}).SerializeToString()
        call = client.channel.unary_stream(GENERATE)(request)
        next(iter(call))
        call.cancel()
        until(lambda: engine.stats().active == 0 and model.open == 0)
        refusal = client.generate(messages.GenerateRequest.FromString(request), timeout=0.3)[-1]
        assert refusal.code == "DEADLINE_EXCEEDED"
        until(lambda: engine.stats().active == 0 and model.open == 0)
        assert engine.stats().cancelled == 2


def test_a_deadline_and_a_timeout_reach_the_engine_of_tensors():
    model = FakeTensorModel()
    arrays = {
        "x": ("FP32", np.zeros((1, 3), np.float32)),
        "flag": ("BOOL", np.array([True])),
        "word": ("BYTES", np.array([[b""]], object)),
    }
    with rpc_of({"three": model}) as (client, _, service):
        model.may_run.clear()
        request = infer_request("three", arrays)
        assert client.call("ModelInfer", request, timeout=0.2).code == "DEADLINE_EXCEEDED"
        request.parameters["timeout"].int64_param = 100_000
        refusal = client.call("ModelInfer", request)
        assert (refusal.code, "deadline" in refusal.sentence) == ("DEADLINE_EXCEEDED", True)
        request.parameters["timeout"].int64_param = -1
        assert client.call("ModelInfer", request).code == "INVALID_ARGUMENT"
        model.may_run.set()
        until(lambda: service.find("three").engine.stats().active == 0)


def test_bounds_on_messages_calls_and_idle_streams():
    model = FakeTensorModel()
    limits = RpcLimits(max_message_bytes=4096, max_calls=1, idle_seconds=0.3)
    with rpc_of({"lone": LoneInput(), "three": model}, limits) as (client, _, _):
        assert client.raw(INFERENCE + "ModelInfer", b"\0" * 4097).code == "RESOURCE_EXHAUSTED"
        bomb = client.channel.unary_unary(INFERENCE + "ModelInfer").with_call
        with pytest.raises(grpc.RpcError) as caught:
            bomb(b"\0" * 4_000_000, compression=grpc.Compression.Gzip)
        assert caught.value.code().name == "RESOURCE_EXHAUSTED"
        hold = threading.Event()

        def questions():
            yield infer_request("lone", LONE).SerializeToString()
            hold.wait(5)

        call = client.channel.stream_stream(INFERENCE + "ModelStreamInfer")(questions())
        next(iter(call))
        refusal = client.call("ModelInfer", infer_request("lone", LONE))
        assert refusal.code == "RESOURCE_EXHAUSTED" and "too many calls" in refusal.sentence
        assert health_pb2_grpc.HealthStub(client.channel).Check(health_pb2.HealthCheckRequest()).status == 1
        with pytest.raises(grpc.RpcError) as caught:
            next(iter(call))
        assert caught.value.code().name == "DEADLINE_EXCEEDED" and "no message came" in caught.value.details()
        hold.set()


def test_bounds_on_connections_metadata_and_pings():
    with rpc_of({"lone": LoneInput()}, RpcLimits(max_connections=3, ping_seconds=60)) as (client, server, _):
        assert client.call("ServerLive").live
        with pytest.raises(grpc.RpcError) as caught:
            client.channel.unary_unary(INFERENCE + "ServerLive")(b"", metadata=(("x", "y" * 20_000),), timeout=5)
        assert caught.value.code().name == "RESOURCE_EXHAUSTED"
        options = {"keepalive_time_ms": 50, "keepalive_permit_without_calls": 1, "http2.max_pings_without_data": 0}
        own = [("grpc.use_local_subchannel_pool", 1)]
        address = f"127.0.0.1:{server.port}"
        with grpc.insecure_channel(
            address, own + [(f"grpc.{name}", value) for name, value in options.items()]
        ) as noisy:
            watching = health_pb2_grpc.HealthStub(noisy).Watch(health_pb2.HealthCheckRequest(), timeout=15)
            with pytest.raises(grpc.RpcError) as caught:
                list(watching)
            assert caught.value.code().name == "UNAVAILABLE" and "Too many pings" in caught.value.details()
        channels = [grpc.insecure_channel(address, own) for _ in range(4)]
        answers = [RpcClient(0, channel=channel).call("ServerLive", timeout=2) for channel in channels]
        assert 0 < sum(isinstance(answer, Refused) for answer in answers) < 4
        assert client.call("ServerLive").live
        for channel in channels:
            channel.close()


def test_running_calls_may_finish_and_the_rest_gets_503():
    model = FakeModel(step_seconds=0.02)
    with rpc_of({"echo": model}) as (client, server, _):
        short = generate_request(model="echo", prompt="a", sampling={"max_tokens": 10})
        long = generate_request(model="echo", prompt="a", sampling={"max_tokens": 4000})
        answers = {}
        threads = [
            threading.Thread(target=lambda name=name, request=request: answers.update({name: client.generate(request)}))
            for name, request in (("short", short), ("long", long))
        ]
        for thread in threads:
            thread.start()
        until(lambda: model.open == 2)
        server.close(drain_seconds=1.0)
        for thread in threads:
            thread.join()
        assert answers["short"][-1].finish_reason == "length"
        assert answers["long"][-1].code == "UNAVAILABLE" and "the server is stopping" in answers["long"][-1].sentence
        assert answers["long"][-1].trailing["retry-after"]
        until(lambda: model.open == 0)


def test_an_address_in_use_is_told(served):
    _, server, service = served
    with pytest.raises(ConfigError, match="can't be used for gRPC"), RpcServer(service, port=server.port):
        pass


def certificate(folder, name):
    """Write a certificate for localhost that signs itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    options = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN={name}"
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    command = [openssl, *options.split(), "-addext", "subjectAltName=DNS:localhost", *files]
    subprocess.run(command, check=True, capture_output=True)
    return (folder / "cert.pem").read_bytes()


def test_tls_and_a_renewed_certificate(tmp_path):
    first = certificate(tmp_path, "first")
    with rpc_of({"lone": LoneInput()}, tls=TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem")) as (plain, server, _):

        def answer(pem):
            credentials = grpc.ssl_channel_credentials(pem)
            with grpc.secure_channel(f"localhost:{server.port}", credentials) as channel:
                return RpcClient(0, channel=channel).call("ModelInfer", infer_request("lone", LONE), timeout=3)

        assert answer(first).model_name == "lone"
        assert plain.call("ServerLive", timeout=3).code == "UNAVAILABLE"
        second = certificate(tmp_path, "second")
        assert answer(second).model_name == "lone"
        assert isinstance(answer(first), Refused)


def test_models_are_listed_loaded_and_unloaded_only_where_allowed(served):
    client, _, _ = served
    for name in ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"):
        assert client.call(name).code == "PERMISSION_DENIED"
    with rpc_of({"lone": LoneInput(), "echo": FakeModel()}, RpcLimits(allow_admin=True)) as (admin, _, service):
        index = admin.call("RepositoryIndex")
        assert sorted((model.name, model.version, model.state) for model in index.models) == [
            ("echo", "1", "READY"),
            ("lone", "1", "READY"),
        ]
        unload = messages.RepositoryModelUnloadRequest(model_name="lone")
        admin.call("RepositoryModelUnload", unload)
        assert admin.call("ModelInfer", infer_request("lone", LONE)).code == "NOT_FOUND"
        assert admin.call("RepositoryModelUnload", messages.RepositoryModelUnloadRequest(model_name="x")).code == (
            "NOT_FOUND"
        )
        assert admin.call("RepositoryModelLoad", messages.RepositoryModelLoadRequest(model_name="no")).code == (
            "NOT_FOUND"
        )
        ready = admin.call("RepositoryIndex", messages.RepositoryIndexRequest(ready=True))
        assert [model.name for model in ready.models] == ["echo"]
        with pytest.raises(RequestError):
            service.find("lone")
