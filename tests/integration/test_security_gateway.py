"""What every route is behind: key, Host, Origin, rate, path, and the audit log; over HTTP and websockets."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import threading
import time

import httpx
import pytest
import websockets.exceptions
import websockets.sync.client

from deepseek.errors import RequestError
from deepseek.serve import BackgroundServer, Service, create_app
from deepseek.serve.monitoring.metrics import PlainMetrics
from deepseek.serve.options import Safety, ServerLimits
from deepseek.serve.rest import protocol
from deepseek.serve.rest.door import Guard, hosts_for
from deepseek.serve.rest.gateway import Gateway
from deepseek.serve.rest.paths import OPEN_ROUTES, route_of
from deepseek.serve.security.keys import KeyRing, new_key
from tests.fake_serving import FakeModel

COMPLETIONS = "/v1/completions"
BODY = {"prompt": "very private words", "max_tokens": 5}


def all_routes() -> list[tuple[str, str]]:
    """Return method and a real path of every route of the application."""
    found = []
    app = create_app(Service({"m": FakeModel()}), allow_admin=True)
    while not hasattr(app, "routes"):  # the router is the innermost
        app = app._app if hasattr(app, "_app") else app.app
    for route in app.routes:
        path = re.sub(r"\{(\w+)\}", lambda match: {"name": "m", "version": "1"}[match[1]], route.path)
        found += [(method, path) for method in sorted(getattr(route, "methods", None) or {"WEBSOCKET"})]
    return found


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Return the file of two keys, and the keys."""
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    (free, line), (held, held_line) = new_key("free"), new_key("held", 12)
    file.write_text(f"{line}\n{held_line}\n")
    return file, free, held


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    return tmp_path_factory.mktemp("audit") / "audit.jsonl"


@pytest.fixture(scope="module")
def server(keys, audit):
    safety = Safety(api_keys=keys[0], audit_log=audit)
    with BackgroundServer({"m": FakeModel("fine ")}, safety=safety, allow_admin=True) as running:
        yield running


def test_the_application_has_the_routes_this_is_about():
    paths = {path for _, path in all_routes()}
    assert {COMPLETIONS, "/v1/models/m:predict", "/v2/models/m/infer", "/v2/repository/models/m/unload"} <= paths
    assert paths >= OPEN_ROUTES and len(paths) >= 18


@pytest.mark.parametrize(("method", "path"), [route for route in all_routes() if route[1] not in OPEN_ROUTES])
def test_every_route_but_health_and_page_asks_for_a_key(server, method, path):
    wrong = [None, "Bearer wrong", "Bearer", "Basic d3Jvbmc=", "Bearer " + "x" * 4000]
    with httpx.Client(base_url=server.url) as client:
        bodies = set()
        for header in wrong:
            asked = "GET" if method == "WEBSOCKET" else method  # as a websocket begins
            response = client.request(asked, path, headers={} if header is None else {"authorization": header})
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.headers["x-request-id"]
            bodies.add(re.sub(r"[0-9a-f]{32}", "", response.text))
    assert len(bodies) == 1


@pytest.mark.parametrize(("method", "path"), [route for route in all_routes() if route[1] in OPEN_ROUTES])
def test_probes_and_page_do_not(server, method, path):
    assert httpx.request(method, server.url + path).status_code == 200


def test_a_key_with_a_rate_of_its_own_is_held_to_it_and_the_other_is_not(server, keys):
    _, free, held = keys
    with httpx.Client(base_url=server.url) as client:
        codes = [client.get("/v1/models", headers={"authorization": f"Bearer {held}"}) for _ in range(6)]
        others = [client.get("/v1/models", headers={"authorization": f"Bearer {free}"}) for _ in range(30)]
    assert [response.status_code for response in codes] == [200, 200, 429, 429, 429, 429]
    assert 1 <= int(codes[-1].headers["retry-after"]) <= 60
    assert "12 a minute" in codes[-1].json()["error"]["message"]
    assert {response.status_code for response in others} == {200}


def test_a_key_taken_out_of_the_file_opens_no_more(tmp_path):
    file = tmp_path / "keys.txt"
    (first, line), (second, other) = new_key("first"), new_key("second")
    file.write_text(line)
    with BackgroundServer({"m": FakeModel()}, safety=Safety(api_keys=file)) as server:

        def code(key: str) -> int:
            return httpx.get(server.url + "/v1/models", headers={"authorization": f"Bearer {key}"}).status_code

        assert (code(first), code(second)) == (200, 401)
        file.write_text(f"{other}\n\n")
        asyncio.run(server._running.look())
        assert (code(first), code(second)) == (401, 200)


def test_the_audit_log_says_who_asked_what_and_never_the_prompt(server, keys, audit):
    _, free, _ = keys
    headers = {"authorization": f"Bearer {free}"}
    fine = httpx.post(server.url + COMPLETIONS, json=BODY, headers=headers)
    wrong = httpx.post(server.url + COMPLETIONS, json={**BODY, "n": 99}, headers=headers)
    unknown = httpx.get(server.url + "/v1/private-words", headers=headers)
    wanted = {response.headers["x-request-id"] for response in (fine, wrong, unknown)}
    while not wanted <= {record["request_id"] for record in records(audit)}:
        time.sleep(0.005)
    found = {record["request_id"]: record for record in records(audit)}
    record = found[fine.headers["x-request-id"]]
    assert record["time"] > 1e9 and 0 < record["seconds"] < 60
    assert {name: record[name] for name in ("key", "client", "method", "route", "model", "status")} == {
        "key": "free",
        "client": "127.0.0.1",
        "method": "POST",
        "route": COMPLETIONS,
        "model": "m",
        "status": 200,
    }
    assert (record["tokens_in"], record["tokens_out"]) == (len(BODY["prompt"]), 5)
    assert found[wrong.headers["x-request-id"]]["status"] == 400
    assert found[unknown.headers["x-request-id"]]["route"] == "other"
    text = audit.read_text()
    assert "private" not in text and free not in text


def test_prompts_are_logged_only_when_asked_for(tmp_path):
    log = tmp_path / "audit.jsonl"
    with BackgroundServer({"m": FakeModel()}, safety=Safety(audit_log=log, log_prompts=True)) as server:
        httpx.post(server.url + COMPLETIONS, json=BODY)
        httpx.post(server.url + "/v1/chat/completions", json={"messages": [{"role": "user", "content": "good day"}]})
    prompts = [record["prompt"] for record in records(log)]
    assert "very private words" in prompts[0] and "good day" in prompts[1]


def records(audit) -> list[dict]:
    return [json.loads(line) for line in audit.read_text().splitlines() if line.endswith("}")]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../../etc/passwd",
        "/v1/models/%2e%2e/%2e%2e/etc/passwd",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/models/m%2f..%2fm",
        "/v1/models/%252e%252e",
        "/v1/models/m%00",
        "/v1/models/m%0d%0aX: y",
        "/v1/models/m\\..\\m",
        "/v1/models/%5c..%5cm",
        "//v1/models",
        "/v1//models",
        "/v1/models/./m",
        "/v1/models/" + "x" * 1100,
        "/v2/models/../m/infer",
        "/v2/models/m/versions/../1/infer",
        "/v1/models/..:predict",
        "/v1/models/m%2fm:predict",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_path_that_could_mean_two_things_is_no_path(server, keys, method, path):
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {keys[1]}\r\nConnection: close\r\n"
    with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port), timeout=20) as connection:
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        answer = connection.makefile("rb").read()
    assert answer[:12] in (b"HTTP/1.1 404", b"HTTP/1.1 400", b"HTTP/1.1 405")
    assert b"passwd" not in answer or b"'/" in answer  # at most the path itself comes back


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1.evil.example"}, 403),
        ({"origin": "http://localhost:9999"}, 200),
        ({"origin": "http://my.example:8443"}, 200),
        ({}, 200),
    ],
)
def test_pages_of_other_hosts_change_nothing(headers, status):
    with BackgroundServer({"m": FakeModel()}, allowed_hosts=["my.example"]) as server:
        post = httpx.post(server.url + COMPLETIONS, json=BODY, headers=headers)
        own = httpx.post(server.url + COMPLETIONS, json=BODY, headers={"origin": server.url})
        assert (post.status_code, own.status_code) == (status, 200)
        assert httpx.get(server.url + "/v1/models", headers=headers).status_code == 200


def test_without_keys_addresses_are_counted_and_probes_are_not():
    with BackgroundServer({"m": FakeModel()}, safety=Safety(requests_per_minute=60, burst=3)) as server:
        with httpx.Client(base_url=server.url) as client:
            codes = [client.get("/v1/models").status_code for _ in range(8)]
            probes = [client.get(path).status_code for path in OPEN_ROUTES for _ in range(5)]
    assert codes[:3] == [200] * 3 and codes.count(429) >= 3
    assert set(probes) == {200}


def test_guesses_at_keys_are_counted_too():
    with BackgroundServer({"m": FakeModel()}, safety=Safety(api_key="k", requests_per_minute=6, burst=3)) as server:
        codes = [
            httpx.get(server.url + "/v1/models", headers={"authorization": f"Bearer {number}"}).status_code
            for number in range(6)
        ]
        mine = httpx.get(server.url + "/v1/models", headers={"authorization": "Bearer k"}).status_code
    assert codes == [401, 401, 401, 429, 429, 429]
    assert mine == 200


def test_one_client_can_not_have_more_open_than_its_share():
    model = FakeModel("fine ")
    with BackgroundServer({"m": model}, safety=Safety(concurrent=2)) as server:
        model.may_step.clear()
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(httpx.post(server.url + COMPLETIONS, json=BODY).status_code))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        while server._running.guard.limiter._rates._open.get("address 127.0.0.1", 0) < 2:
            time.sleep(0.005)
        third = httpx.post(server.url + COMPLETIONS, json=BODY)
        model.may_step.set()
        for thread in threads:
            thread.join()
        assert (third.status_code, third.headers["retry-after"]) == (429, "1")
        assert answers == [200, 200]
        assert httpx.post(server.url + COMPLETIONS, json=BODY).status_code == 200
        assert not server._running.guard.limiter._rates._open


def test_beyond_the_connections_that_may_be_open_503_with_retry_after():
    with BackgroundServer({"m": FakeModel()}, limits=ServerLimits(max_connections=2)) as server:
        port = httpx.URL(server.url).port
        held = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(2)]
        for connection in held:  # accepted for certain once they were answered
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        refused = httpx.get(server.url + "/health")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        for connection in held:
            connection.close()
        while httpx.get(server.url + "/health").status_code != 200:
            time.sleep(0.005)


def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(monkeypatch):
    monkeypatch.setattr(protocol, "WRITE_SECONDS", 0.3)
    body = json.dumps({"prompt": "x", "max_tokens": 4000, "n": 8, "stream": True}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with BackgroundServer({"m": FakeModel("fine ")}) as server, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.connect(("127.0.0.1", httpx.URL(server.url).port))
        slow.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        connections = server._running.server.server_state.connections
        while not connections:
            time.sleep(0.005)
        while connections:
            pass
        assert httpx.post(server.url + COMPLETIONS, json=BODY).status_code == 200


def test_request_ids_are_all_different_and_a_client_can_not_choose_one(server):
    with httpx.Client(base_url=server.url, headers={"x-request-id": "mine"}) as client:
        ids = [client.get("/health").headers["x-request-id"] for _ in range(50)]
    assert len(set(ids)) == 50 and all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/v1/models/m", "/v1/models/{name}"),
        ("/v1/models/m:predict", "/v1/models/{name}:predict"),
        ("/v1/models/m/versions/2:predict", "/v1/models/{name}/versions/{version}:predict"),
        ("/v2/models/m", "/v2/models/{name}"),
        ("/v2/models/m/versions/2/infer", "/v2/models/{name}/versions/{version}/infer"),
        ("/v2/models/m/generate_stream", "/v2/models/{name}/generate_stream"),
        ("/v2/repository/models/m/load", "/v2/repository/models/{name}/load"),
        ("/v2/models/m/secret", "other"),
        ("/x" * 500, "other"),
    ],
)
def test_labels_of_metrics_are_few(path, label):
    assert route_of(path) == label


def test_every_route_has_a_label_of_its_own():
    assert "other" not in {route_of(path) for _, path in all_routes()}


class Socket:
    """A websocket's scope, and what a gateway around a small application sends."""

    def __init__(self, guard: Guard, headers: dict[str, str], extensions: tuple[str, ...] = ()) -> None:
        self.sent: list[dict] = []
        self.state: dict = {}

        async def app(scope, receive, send) -> None:
            self.state = scope["state"]
            await send({"type": "websocket.accept"})

        async def send(message) -> None:
            self.sent.append(message)

        scope = {
            "type": "websocket",
            "path": "/v1/speech",
            "raw_path": b"/v1/speech",
            "client": ("127.0.0.1", 5),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "extensions": dict.fromkeys(extensions, {}),
        }
        gateway = Gateway(app, metrics=PlainMetrics(Service({})), retry_after=lambda: 1, guard=guard)
        asyncio.run(gateway(scope, None, send))


def protocol_of(key: str) -> str:
    return "speech, key." + base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def test_a_websocket_needs_the_key_too_in_a_header_or_as_a_browser_can_give_it():
    guard = Guard(hosts=hosts_for("127.0.0.1"), keys=KeyRing.of_secret("k-1"))
    for headers in ({"authorization": "Bearer k-1"}, {"sec-websocket-protocol": protocol_of("k-1")}):
        opened = Socket(guard, {"host": "localhost", **headers})
        assert opened.sent[0]["type"] == "websocket.accept" and opened.state["key"] == "default"
    wrong = [{}, {"authorization": "Bearer k-2"}, {"sec-websocket-protocol": protocol_of("k-2")}]
    wrong += [{"sec-websocket-protocol": text} for text in ("key.", "key.!!!", "k-1", "key.\xe9")]
    for headers in wrong:
        refused = Socket(guard, {"host": "localhost", **headers})
        assert [message["type"] for message in refused.sent] == ["websocket.close"]
        told = Socket(guard, {"host": "localhost", **headers}, ("websocket.http.response",))
        assert (told.sent[0]["type"], told.sent[0]["status"]) == ("websocket.http.response.start", 401)


def test_a_page_of_another_host_opens_no_websocket():
    guard = Guard(hosts=hosts_for("127.0.0.1"))
    assert Socket(guard, {"host": "localhost", "origin": "http://localhost:8080"}).sent[0]["type"] == "websocket.accept"
    for headers in ({"host": "localhost", "origin": "http://evil.example"}, {"host": "evil.example"}, {}):
        assert Socket(guard, headers).sent[0]["type"] == "websocket.close"


def test_a_real_websocket_without_a_key_gets_401(server):
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        websockets.sync.client.connect(server.url.replace("http", "ws") + "/v1/speech").close()
    assert refused.value.response.status_code == 401


def test_what_goes_wrong_inside_is_not_told_outside(caplog):
    async def app(scope, receive, send) -> None:
        raise RuntimeError("secret path /srv/models")

    sent: list[dict] = []

    async def send(message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v1/models", "raw_path": b"/v1/models", "headers": []}
    asyncio.run(Gateway(app, metrics=PlainMetrics(Service({})), retry_after=lambda: 1)(scope, None, send))
    assert sent[0]["status"] == 500 and b"secret" not in sent[1]["body"]
    request_id = dict(sent[0]["headers"])[b"x-request-id"].decode()
    assert request_id in caplog.text and "secret path" in caplog.text


def test_a_refusal_with_its_own_time_to_wait_keeps_it():
    class Busy(RequestError):
        retry_after = 7

    async def app(scope, receive, send) -> None:
        raise Busy("busy", status=503)

    sent: list[dict] = []

    async def send(message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v1/models", "raw_path": b"/v1/models", "headers": []}
    asyncio.run(Gateway(app, metrics=PlainMetrics(Service({})), retry_after=lambda: 1)(scope, None, send))
    assert dict(sent[0]["headers"])[b"retry-after"] == b"7"
