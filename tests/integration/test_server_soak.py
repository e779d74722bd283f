"""A short form of `benchmarks.serve_soak`: memory, threads and descriptors after many requests of all kinds."""

from __future__ import annotations

import gc
import os
import sys
import time

import httpx
import pytest

from benchmarks.children.soak_run import Held, Mixture
from deepseek.serve import BackgroundServer
from deepseek.serve.options import Safety
from tests.fake_serving import FakeModel


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads Linux' /proc")
def test_memory_threads_and_descriptors_stay(tmp_path):
    safety = Safety(api_key="k-1", requests_per_minute=9_000_000, audit_log=tmp_path / "audit.jsonl")
    with BackgroundServer({"m": FakeModel("fine ")}, safety=safety) as server:
        mixture = Mixture(httpx.URL(server.url).port, "k-1")
        mixture.send(400)
        settle(server)
        before = Held.of(os.getpid())
        mixture.send(1000)
        settle(server)
        after = Held.of(os.getpid())
        assert server.service.hosted["m"].engine.stats().active == 0
    assert after.memory < 1.02 * before.memory
    assert after.threads <= before.threads
    assert after.descriptors <= before.descriptors
    assert set(mixture.statuses) == {0, 200, 400, 401, 404}
    assert mixture.statuses[200] == 1400 * 5 // 10


def settle(server: BackgroundServer) -> None:
    """Wait until the connections of clients that have gone are closed."""
    while server._running.server.server_state.connections:
        time.sleep(0.01)
    gc.collect()
