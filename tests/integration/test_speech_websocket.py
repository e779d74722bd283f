"""Speech over a real websocket: texts, bounds, keys, and clients that are slow, silent or gone."""

from __future__ import annotations

import base64
import json
import time

import httpx
import pytest
import torch

from deepseek.data.audio.endpointer import EndpointSettings
from deepseek.serve import BackgroundServer
from deepseek.serve.speech.limits import StreamLimits
from deepseek.serve.speech.model import speech_model
from deepseek.serve.speech.recognizer import Recognizer
from tests.fake_serving import FakeModel
from tests.toy_speech import RATE, cut, pcm16, speech_bundle, spoken, text_of

pytest.importorskip("websockets")
from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

START = {"type": "start", "model": "m", "sample_rate": RATE}
LIMITS = StreamLimits(max_streams=2, max_seconds=20.0, idle_seconds=1.0, max_frame_bytes=64_000, max_whole_seconds=5.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return speech_bundle(tmp_path_factory.mktemp("speech") / "b")


@pytest.fixture(scope="module")
def server(made):
    with BackgroundServer({"m": made.path, "text": FakeModel("x")}, stream_limits=LIMITS) as running:
        yield running


def opened(server, **options):
    return connect(f"ws{server.url[4:]}/v1/audio/stream", **options)


def told(socket):
    """Return all messages up to the end of the socket."""
    messages = []
    try:
        while True:
            messages.append(json.loads(socket.recv(timeout=30)))
    except ConnectionClosed:
        return messages


def streamed(server, pieces, **start):
    with opened(server) as socket:
        socket.send(json.dumps({**START, **start}))
        for piece in pieces:
            socket.send(piece)
        socket.send('{"type": "end"}')
        return told(socket)


def refused(server, *messages):
    """Return the error that ends a stream of these messages, and the closing code."""
    with opened(server) as socket:
        for message in messages:
            socket.send(message if isinstance(message, bytes) else json.dumps(message))
        *_, last = told(socket)
        assert last["type"] == "error" and len(last["request_id"]) == 32
        return last["error"]["message"], socket.protocol.close_code


def open_streams(server):
    return server._running._streams.stats().open


@pytest.mark.parametrize("encoding", ["pcm16", "float32"])
def test_the_text_is_that_of_the_whole_recording(server, made, encoding):
    waveform = (spoken(0.8, 0.7) * 32767).round() / 32768
    pieces = [pcm16(one * 32768 / 32767) if encoding == "pcm16" else one.numpy().tobytes() for one in cut(waveform, 5)]
    started, *results, done = streamed(server, pieces, endpoints=False, encoding=encoding)
    assert started == {"type": "started", "model": "m", "version": "1", "sample_rate": RATE, "encoding": encoding}
    assert results[-1]["type"] == "final" and results[-1]["text"] == text_of(made, waveform) != ""
    assert done["type"] == "done" and done["seconds"] == pytest.approx(len(waveform) / RATE, abs=0.001)
    assert 0 < done["real_time_factor"] < 1000
    for before, after in zip(results[:-2], results[1:-1], strict=True):
        assert after["text"].startswith(before["text"]) and after["real_time_factor"] > 0 and after["latency_ms"] > 0


def test_a_final_text_comes_for_every_utterance_while_the_stream_goes_on(server, made):
    waveform = spoken(0.7, 0.9)
    pieces = [pcm16(one) for one in torch.split(waveform, 3200)]
    with opened(server) as socket:
        socket.send(json.dumps({**START, "pause_ms": 300, "partial": False}))
        assert json.loads(socket.recv(timeout=30))["type"] == "started"
        for piece in pieces[:12]:
            socket.send(piece)
        first = json.loads(socket.recv(timeout=30))  # before the end of the sound
        for piece in pieces[12:]:
            socket.send(piece)
        socket.send('{"type": "end"}')
        second, done = told(socket)
    told_of = httpx.get(f"{server.url}/page/numbers").json()["speech"]
    assert told_of["busy_seconds"] > 0 and told_of["audio_seconds"] >= done["seconds"] and told_of["utterances"] >= 2
    assert (first["type"], first["utterance"], second["utterance"], done["utterances"]) == ("final", 0, 1, 2)
    heard = torch.frombuffer(bytearray(b"".join(pieces)), dtype=torch.int16).float() / 32768
    recognizer = Recognizer(speech_model(made), RATE, endpoints=EndpointSettings(min_pause_ms=300.0))
    wanted = [one for one in recognizer.push(heard) + recognizer.finish() if one.final]
    for one, alone in zip((first, second), wanted, strict=True):
        assert (one["text"], one["tokens"]) == (alone.text, list(alone.tokens))
        assert (one["start"], one["end"]) == pytest.approx((alone.start, alone.end), abs=0.001)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([b"\0\0"], "first message is the start"),
        ([{"type": "end"}], "first message is the start"),
        ([{**START, "model": "nobody"}], "nobody"),
        ([{**START, "model": "../x"}], "does not exist"),
        ([{**START, "model": "text"}], "does not recognise speech"),
        ([{**START, "sample_rate": 1}], "sample_rate"),
        ([{**START, "sample_rate": 10**30}], "sample_rate"),
        ([{**START, "encoding": "mp3"}], "encoding"),
        ([{**START, "extra": 1}], "unknown field 'extra'"),
        ([START, START], "samples or the end"),
        ([START, b"\0"], "cut in the middle"),
        ([START, b"\0" * 64_002], "too long"),
        ([START, *[b"\0" * 64_000] * 11], "stream is too long"),
        ([{**START, "endpoints": False}, *[b"\0" * 64_000] * 3], "at most 5 s"),
        ([{**START, "encoding": "float32"}, b"\xff\xff\xff\x7f"], "NaN"),
        ([START], "no message came for 1 s"),
    ],
)
def test_what_is_wrong_is_told_and_ends_the_stream(server, messages, said):
    message, code = refused(server, *messages)
    assert said in message and code == 1008


def test_a_message_that_unpacks_to_far_more_than_it_is_ends_the_stream(server):
    with opened(server) as socket:
        socket.send(json.dumps(START))
        assert json.loads(socket.recv(timeout=30))["type"] == "started"
        assert "permessage-deflate" in socket.response.headers["sec-websocket-extensions"]
        with pytest.raises(ConnectionClosed) as closed:
            socket.send(bytes(16 << 20))  # some 16 KB on the wire
            socket.recv(timeout=30)
    assert closed.value.rcvd.code == 1009


@pytest.mark.parametrize("text", ["", "[]", "{", '{"type": "start", "type": "start"}', "[" * 3000, "x" * 5000])
def test_what_is_no_message_is_refused(server, text):
    with opened(server) as socket:
        socket.send(text)
        assert told(socket)[-1]["type"] == "error"


def test_no_more_streams_than_allowed_and_a_leaving_client_frees_its_own(server):
    with opened(server) as first, opened(server):
        with pytest.raises(InvalidStatus) as full:
            opened(server)
        assert full.value.response.status_code == 429 and int(full.value.response.headers["Retry-After"]) >= 1
        assert "too many streams" in full.value.response.body.decode()
        first.socket.close()  # gone without a word
        wait_until(lambda: open_streams(server) <= 1)
        with opened(server) as third:
            third.send(json.dumps(START))
            assert json.loads(third.recv(timeout=30))["type"] == "started"
    wait_until(lambda: open_streams(server) == 0)
    assert server._running.service.hosted["m"].leases == 0


def test_a_client_that_leaves_in_the_middle_frees_the_model(server):
    with opened(server) as socket:
        socket.send(json.dumps(START))
        for piece in torch.split(spoken(3.0), 16_000):
            socket.send(pcm16(piece))
        socket.socket.close()
    wait_until(lambda: open_streams(server) == 0 and server._running.service.hosted["m"].leases == 0)


def test_the_key_is_checked_before_the_upgrade(made):
    with BackgroundServer({"m": made.path}, api_key="k-1~?>") as guarded:
        with pytest.raises(InvalidStatus) as refusal:
            opened(guarded)
        assert refusal.value.response.status_code == 401
        key = base64.urlsafe_b64encode(b"k-1~?>").decode().rstrip("=")
        with opened(guarded, subprotocols=["deepseek.audio", f"key.{key}"]) as socket:
            assert socket.subprotocol == "deepseek.audio"
            socket.send(json.dumps(START))
            assert json.loads(socket.recv(timeout=30))["type"] == "started"


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_that_stops_closes_its_streams(made):
    with BackgroundServer({"m": made.path}) as stopping:
        with opened(stopping) as socket:
            socket.send(json.dumps(START))
            assert json.loads(socket.recv(timeout=30))["type"] == "started"
            stopping.service.stopping = True
            socket.send(pcm16(spoken(0.3)))
            assert "stopping" in told(socket)[-1]["error"]["message"]
        with pytest.raises(InvalidStatus) as refusal:
            opened(stopping)
        assert refusal.value.response.status_code == 503
