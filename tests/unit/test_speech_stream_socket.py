"""The websocket's endpoint without a network: clients that stop reading, and a server that stops."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from deepseek.errors import RequestError
from deepseek.serve.hosted import Lease
from deepseek.serve.speech.limits import StreamLimits
from deepseek.serve.speech.session import Streams
from deepseek.serve.speech.websocket import SpeechSocket
from tests.toy_speech import RATE, pcm16, speech_bundle, spoken


class Held:
    """A service of one model that counts who holds it."""

    def __init__(self, bundle: Any) -> None:
        self.stopping = False
        self.leases = 0
        self.hosted = SimpleNamespace(name="m", version="1", bundle=bundle, release=self.release)

    def release(self) -> None:
        self.leases -= 1

    def use(self, name: str | None, version: str | None = None) -> Lease:
        self.leases += 1
        return Lease(self.hosted)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return Held(speech_bundle(tmp_path_factory.mktemp("speech") / "b"))


def serve(streams: Streams, messages: list[Any], reads: int) -> list[dict[str, Any]]:
    """Run the endpoint on these messages; the client reads only so many of the answers."""
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        waiting = iter([{"type": "websocket.connect"}, *messages])

        async def receive() -> dict[str, Any]:
            return next(waiting, {"type": "websocket.disconnect"})

        async def send(message: dict[str, Any]) -> None:
            if len(sent) >= reads:
                await asyncio.sleep(60)
            sent.append(message)

        scope = {"type": "websocket", "state": {"request_id": "1" * 32}, "subprotocols": ["key.x"]}
        await asyncio.wait_for(SpeechSocket(streams)(scope, receive, send), 20)

    asyncio.run(run())
    return sent


def text(value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "websocket.receive", "text": json.dumps(value)}


START = text({"type": "start", "sample_rate": RATE, "endpoints": False})
SAMPLES = {"type": "websocket.receive", "bytes": pcm16(spoken(2.0))}


def test_a_client_that_does_not_read_frees_its_stream(service):
    streams = Streams(service, StreamLimits(send_seconds=0.05))
    sent = serve(streams, [START, SAMPLES, SAMPLES], reads=2)
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send"]
    assert sent[0]["subprotocol"] is None  # a key is never chosen
    assert streams.stats().open == 0 and service.leases == 0


def test_a_client_that_leaves_without_an_end_frees_its_stream(service):
    streams = Streams(service)
    serve(streams, [START, SAMPLES], reads=100)
    stats = streams.stats()
    assert (stats.open, stats.streams, service.leases) == (0, 1, 0)
    assert stats.audio_seconds == pytest.approx(3.6) and 0 < stats.busy_seconds


def test_a_stopping_server_ends_streams_and_takes_no_more(service):
    streams = Streams(service)
    service.stopping = True
    try:
        with pytest.raises(RequestError) as refused, streams.room():
            pass
        assert refused.value.status == 503
    finally:
        service.stopping = False


def test_a_fault_of_ours_tells_its_id_only(service, monkeypatch, caplog):
    streams = Streams(service)
    monkeypatch.setattr("deepseek.serve.speech.session.Session.take", broken)
    *_, told, closed = serve(streams, [START, SAMPLES], reads=100)
    assert "1" * 32 in told["text"] and "secret" not in told["text"] and closed["code"] == 1011
    assert streams.stats().open == 0


async def broken(self: Any, data: bytes) -> list[dict[str, Any]]:
    raise RuntimeError("a secret detail")
