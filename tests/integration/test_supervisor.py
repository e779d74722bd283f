"""Workers that are killed, hang or can't load, under a real supervisor with real processes."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time

import httpx
import pytest

from deepseek.errors import BundleError, ConfigError
from deepseek.serve import serve
from deepseek.serve.child import Child
from deepseek.serve.options import ServerOptions
from deepseek.serve.seat import Shared
from deepseek.serve.sockets import bind, reserve
from deepseek.serve.supervisor import SupervisorError
from tests.fake_serving import FakeModel
from tests.supervised import ROOT, WORKER, Supervised, supervised

BODY = {"prompt": "x", "max_tokens": 5}


@pytest.fixture(scope="module")
def pair():
    with supervised(hang_seconds=3.0) as running:
        yield running


def test_kill_9_of_a_worker_under_load_fails_only_what_it_was_answering(pair):
    stop = threading.Event()
    answers: list[tuple[float, bool]] = []

    def ask() -> None:
        with httpx.Client(base_url=pair.url, timeout=60, headers={"authorization": "Bearer k-1"}) as client:
            while not stop.is_set():
                began = time.monotonic()
                try:
                    fine = client.post("/v1/completions", json=BODY).json()["choices"][0]["text"] == "fine "
                except httpx.TransportError:
                    fine = False
                answers.append((began, fine))

    victim = pair.supervisor.pids()[0]
    askers = [threading.Thread(target=ask) for _ in range(4)]
    for thread in askers:
        thread.start()
    try:
        pair.wait_until(lambda: len(answers) > 50)
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        pair.wait_until(lambda: pair.supervisor.restarts and pair.supervisor.all_ready)
        count = len(answers)
        pair.wait_until(lambda: len(answers) > count + 50)
    finally:
        stop.set()
        for thread in askers:
            thread.join()
    failed = [began for began, fine in answers if not fine]
    assert len(failed) <= len(askers)  # each asker has one request open
    assert all(began <= killed + 0.5 for began in failed)
    assert victim not in pair.supervisor.pids() and None not in pair.supervisor.pids()
    pair.wait_until(lambda: pair.health()["restarts"] == 1)
    assert {key: value for key, value in pair.health().items() if key != "worker"} == {
        "status": "alive",
        "workers": 2,
        "restarts": 1,
    }


def test_a_worker_that_hangs_is_replaced(pair):
    victim, restarts = pair.supervisor.pids()[1], pair.supervisor.restarts
    os.kill(victim, signal.SIGSTOP)
    pair.wait_until(lambda: pair.supervisor.restarts > restarts)
    pair.wait_until(lambda: pair.supervisor.all_ready)
    assert victim not in pair.supervisor.pids()
    assert pair.client.post("/v1/completions", json=BODY).status_code == 200


def test_the_key_holds_for_every_worker(pair):
    for _ in range(8):
        assert httpx.post(pair.url + "/v1/completions", json=BODY).status_code == 401


def test_stopping_lets_a_running_answer_finish(pair):
    with pair.client.stream(
        "POST", "/v1/completions", json={"prompt": "x", "max_tokens": 300, "stream": True}
    ) as response:
        lines = response.iter_lines()
        next(lines)
        pair.supervisor.stop()
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    pair.thread.join(30)
    assert not pair.thread.is_alive()
    with pytest.raises(httpx.TransportError):
        pair.listener.close()
        httpx.get(pair.url + "/health")


CRASH = "import os, signal; os.kill(os.getpid(), signal.SIG{})"


@pytest.mark.parametrize(
    ("script", "told"), [(CRASH.format("SEGV"), "SIGSEGV"), ("raise SystemExit(7)", "exit code 7")]
)
def test_workers_that_die_while_they_load_end_it_with_a_clear_error(script, told, caplog):
    with Supervised(script) as running:
        running.thread.join(60)
        assert not running.thread.is_alive()
    assert isinstance(running.error, SupervisorError)
    assert "3 times" in running.error.problem and told in str(running.error.found)
    assert running.supervisor.pids() == [None, None]


FAILING = """
import json, os, socket
place = json.loads(os.environ["DEEPSEEK_WORKER"])
line = socket.socket(fileno=place["line"])
line.recv(65536)
line.sendall(json.dumps({"failed": "the weights are torn", "config": False}).encode() + b"\\n")
"""


def test_a_model_that_can_not_be_loaded_is_told_in_its_own_words_and_not_tried_again():
    with Supervised(FAILING) as running:
        running.thread.join(60)
    assert isinstance(running.error, BundleError)
    assert "the weights are torn" in str(running.error)
    assert running.supervisor.restarts == 0


def test_models_in_memory_and_wrong_numbers_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="in memory"):
        serve({"m": FakeModel()}, port=0, workers=2)
    for workers in (0, -1, 257):
        with pytest.raises(ConfigError, match="workers"):
            serve({"m": tmp_path}, port=0, workers=workers)
    with pytest.raises(ConfigError, match="API key"):
        serve({"m": tmp_path}, "0.0.0.0", 0, workers=2)


def test_a_port_in_use_is_told_also_where_it_could_be_shared():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for binder in (bind, reserve):
            with pytest.raises(ConfigError, match="in use"):
                binder("127.0.0.1", taken.getsockname()[1])
    with reserve("127.0.0.1", 0) as kept, socket.socket() as worker:
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        worker.bind(kept.getsockname())
        worker.listen()
        socket.create_connection(kept.getsockname()).close()


def test_a_worker_whose_supervisor_is_gone_ends(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        child = Child((sys.executable, "-c", WORKER), listener, Shared(1))
        try:
            options = ServerOptions().model_dump(mode="json")
            child.begin({"models": {}, "options": options, "number": 0, "workers": 1, "restarts": 0, "orders": []})
            deadline = time.monotonic() + 60
            while child.ready is None:
                assert time.monotonic() < deadline and child.code is None
                child.hear()
                time.sleep(0.02)
            child._hang_up()  # as when the supervisor is killed
            assert child.process.wait(60) == 0
        finally:
            child.kill()
            child.end(5.0)
