"""Speech over gRPC: the same results as over the websocket, and errors as codes."""

from __future__ import annotations

import time

import pytest

from deepseek.serve import BackgroundServer
from deepseek.serve.speech.limits import StreamLimits
from tests.fake_serving import FakeModel
from tests.toy_speech import RATE, cut, pcm16, speech_bundle, spoken, text_of

grpc = pytest.importorskip("grpc")
from deepseek.serve.rpc.messages import (  # noqa: E402
    SPEECH,
    StreamingRecognizeRequest,
    StreamingRecognizeResponse,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return speech_bundle(tmp_path_factory.mktemp("speech") / "b")


@pytest.fixture(scope="module")
def server(made):
    limits = StreamLimits(idle_seconds=1.0, max_frame_bytes=64_000)
    with BackgroundServer({"m": made.path, "text": FakeModel("x")}, grpc_port=0, stream_limits=limits) as running:
        yield running


@pytest.fixture(scope="module")
def recognize(server):
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield channel.stream_stream(
            f"/{SPEECH}/StreamingRecognize",
            request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
            response_deserializer=StreamingRecognizeResponse.FromString,
        )


def requests(waveform, **start):
    yield StreamingRecognizeRequest(start={"model": "m", "sample_rate": RATE, **start})
    for piece in cut(waveform, 2):
        yield StreamingRecognizeRequest(samples=pcm16(piece))


def test_the_text_is_that_of_the_whole_recording(recognize, made):
    waveform = (spoken(0.8) * 32767).round() / 32767
    started, *results, done = recognize(requests(waveform, endpoints=False), timeout=60)
    assert (started.started.model, started.started.sample_rate, started.started.encoding) == ("m", RATE, "pcm16")
    final = results[-1].result
    heard = (waveform * 32767).round() / 32768
    assert final.final and final.text == text_of(made, heard) != "" and len(final.tokens) > 0
    assert not any(one.result.final for one in results[:-1])
    assert done.done.utterances == 1 and done.done.real_time_factor > 0


def test_utterances_end_with_pauses(recognize):
    found = [one.result for one in recognize(requests(spoken(0.7, 0.7), pause_ms=300), timeout=60)]
    assert [one.utterance for one in found if one.final] == [0, 1]


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (StreamingRecognizeRequest(samples=b"\0\0"), "INVALID_ARGUMENT"),
        (StreamingRecognizeRequest(), "INVALID_ARGUMENT"),
        (b"\xff\xff\xff", "INVALID_ARGUMENT"),
        (StreamingRecognizeRequest(start={"model": "nobody"}), "NOT_FOUND"),
        (StreamingRecognizeRequest(start={"model": "text"}), "UNIMPLEMENTED"),
        (StreamingRecognizeRequest(start={"model": "m", "sample_rate": -1}), "INVALID_ARGUMENT"),
        (StreamingRecognizeRequest(start={"model": "m", "encoding": "mp3"}), "INVALID_ARGUMENT"),
    ],
)
def test_a_wrong_start_gets_its_code(recognize, first, code):
    with pytest.raises(grpc.RpcError) as refused:
        list(recognize(iter([first]), timeout=30))
    assert refused.value.code().name == code


def test_bounds_and_silence_get_their_codes(recognize):
    start = StreamingRecognizeRequest(start={"model": "m"})
    with pytest.raises(grpc.RpcError) as refused:
        list(recognize(iter([start, StreamingRecognizeRequest(samples=b"\0" * 64_002)]), timeout=30))
    assert refused.value.code().name == "RESOURCE_EXHAUSTED"
    with pytest.raises(grpc.RpcError) as refused:
        list(recognize(iter([start, start]), timeout=30))
    assert refused.value.code().name == "INVALID_ARGUMENT"


def test_a_client_that_leaves_frees_its_stream(recognize, server):
    call = recognize(requests(spoken(1.0)), timeout=30)
    next(call)
    call.cancel()
    deadline = time.monotonic() + 10
    while server._running._streams.stats().open or server._running.service.hosted["m"].leases:
        assert time.monotonic() < deadline
        time.sleep(0.02)
