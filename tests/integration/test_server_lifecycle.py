"""Start and end of a server: readiness, addresses, signals, draining."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from deepseek.errors import BundleError, ConfigError
from deepseek.serve import BackgroundServer, serve
from deepseek.serve.options import Safety
from tests.fake_serving import FakeModel

ROOT = Path(__file__).parents[2]


def test_not_ready_until_the_golden_samples_are_answered():
    model = FakeModel("fine ")
    model.may_verify.clear()
    server = BackgroundServer({"m": model})
    entering = threading.Thread(target=server.__enter__)
    entering.start()
    try:
        wait_until(lambda: alive(server.url))
        ready = httpx.get(server.url + "/ready")
        early = httpx.post(server.url + "/v1/completions", json={"prompt": "x"})
        model.may_verify.set()
        entering.join(10)
        assert (ready.status_code, ready.json()["models"]) == (503, {"m": "checking"})
        assert (early.status_code, "retry-after" in early.headers) == (503, True)
        assert httpx.get(server.url + "/ready").status_code == 200
        assert httpx.post(server.url + "/v1/completions", json={"prompt": "x"}).status_code == 200
    finally:
        model.may_verify.set()
        entering.join(10)
        server.close()


def test_a_model_that_fails_its_golden_samples_is_not_served():
    with pytest.raises(BundleError, match="golden"):
        BackgroundServer({"damaged": FakeModel(golden=False)}).__enter__()


def test_beside_one_that_is_fine_it_fails_alone():
    with BackgroundServer({"fine": FakeModel(), "damaged": FakeModel(golden=False)}) as server:
        codes = {
            name: httpx.post(server.url + "/v1/completions", json={"model": name, "prompt": "x"}).status_code
            for name in ("fine", "damaged")
        }
    assert codes == {"fine": 200, "damaged": 503}


def test_serve_raises_what_the_golden_samples_found():
    with pytest.raises(BundleError, match="golden"):
        serve({"damaged": FakeModel(golden=False)}, port=0)


def test_an_unexpected_error_in_the_golden_samples_is_told_not_swallowed():
    model = FakeModel()
    model.verify = lambda: 1 / 0
    with pytest.raises(BundleError, match="ZeroDivisionError"):
        BackgroundServer({"m": model}).__enter__()


def test_a_port_in_use_is_told_with_the_next_step():
    with BackgroundServer({"m": FakeModel()}) as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is in use") as error:
            BackgroundServer({"m": FakeModel()}, port=port)
    assert "--port 0" in error.value.fix


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 70000), ("127.0.0.1", -1), ("nowhere.invalid", 0), ("", 99999)]
)
def test_an_address_that_can_not_be_used_is_told(host, port):
    with pytest.raises(ConfigError):
        BackgroundServer({"m": FakeModel()}, host, port)


@pytest.mark.parametrize("key", ["", "with space", "ключ", "a\nb"])
def test_an_api_key_that_no_header_can_carry_is_refused(key):
    with pytest.raises(ConfigError, match="API key"):
        BackgroundServer({"m": FakeModel()}, api_key=key)


def test_nothing_to_serve_is_told():
    with pytest.raises(ConfigError, match="no bundle"):
        BackgroundServer([])


def test_beyond_loopback_any_host_is_taken_unless_some_are_named(caplog):
    with BackgroundServer({"m": FakeModel()}, "0.0.0.0", safety=Safety(insecure=True)) as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(url + "/v1/models", headers={"host": "any.example"}).status_code == 200
    assert "INSECURE" in caplog.text
    with BackgroundServer({"m": FakeModel()}, "0.0.0.0", allowed_hosts=["my.example"], api_key="k") as server:
        url, headers = server.url.replace("0.0.0.0", "127.0.0.1"), {"authorization": "Bearer k"}
        assert httpx.get(url + "/v1/models", headers={**headers, "host": "any.example"}).status_code == 403
        assert httpx.get(url + "/v1/models", headers={**headers, "host": "my.example:80"}).status_code == 200


def test_beyond_loopback_a_server_without_keys_does_not_start_and_says_how_to():
    with pytest.raises(ConfigError) as error:
        BackgroundServer({"m": FakeModel()}, "0.0.0.0")
    for way in ("DEEPSEEK_API_KEY=", "--api-keys FILE", "--insecure"):
        assert way in error.value.fix


def test_an_unknown_or_wrong_option_is_told():
    with pytest.raises(ConfigError, match="prot"):
        BackgroundServer({"m": FakeModel()}, prot=1)
    with pytest.raises(ConfigError, match="device"):
        BackgroundServer({"m": FakeModel()}, device=5)


def test_ipv6_loopback():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with BackgroundServer({"m": FakeModel()}, "::1") as server:
        assert server.url.startswith("http://[::1]:")
        assert httpx.get(server.url + "/health").status_code == 200


def test_after_the_block_the_port_is_free_and_no_thread_is_left():
    before = {thread.name for thread in threading.enumerate()}
    with BackgroundServer({"m": FakeModel()}) as server:
        port = int(server.url.rpartition(":")[2])
    with BackgroundServer({"m": FakeModel()}, port=port):
        pass
    after = {thread.name for thread in threading.enumerate()}
    assert not {name for name in after - before if name.startswith("deepseek")}


def test_sigterm_lets_a_running_answer_finish_and_exits_with_0():
    with server_process(step_seconds=0.01) as (process, url), httpx.Client(base_url=url, timeout=30) as client:
        body = {"prompt": "abc", "max_tokens": 60, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            first = next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert process.wait(20) == 0
    assert first.startswith("data: ")
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"


def test_after_the_time_to_drain_a_running_answer_ends_with_an_error():
    with server_process(step_seconds=0.01, drain_seconds=0.3) as (process, url):
        body = {"prompt": "abc", "max_tokens": 4000, "stream": True}
        with httpx.stream("POST", url + "/v1/completions", json=body, timeout=30) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert process.wait(20) == 0
    assert "stopping" in json.loads(rest[-1][6:])["error"]["message"]


def test_a_second_sigterm_ends_it_at_once():
    with server_process(step_seconds=0.01) as (process, url):
        body = {"prompt": "abc", "max_tokens": 4000, "stream": True}
        with httpx.stream("POST", url + "/v1/completions", json=body, timeout=30) as response:
            next(response.iter_lines())
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: not accepts(url))
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


SCRIPT = """
import sys
from deepseek.serve import ServerLimits, serve
from tests.fake_serving import FakeModel

step, drain = map(float, sys.argv[1:])
model = FakeModel(step_seconds=step)
serve({"m": model}, port=0, limits=ServerLimits(drain_seconds=drain), on_ready=lambda now: print(now.url, flush=True))
"""


@contextmanager
def server_process(*, step_seconds: float, drain_seconds: float = 30.0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yield a process that serves a fake model, and its URL."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(step_seconds), str(drain_seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT,
    )
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def alive(url: str) -> bool:
    try:
        return httpx.get(url + "/health").status_code == 200
    except httpx.TransportError:
        return False


def accepts(url: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
