"""What a careless or hostile client may send: each refused with the field named, and the server goes on."""

from __future__ import annotations

import json
import socket
import time

import httpx
import pytest

from deepseek.serve import BackgroundServer
from deepseek.serve.rest import body as request_body
from deepseek.serve.rest import protocol
from tests.fake_serving import FakeModel

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server():
    with BackgroundServer({"m": FakeModel("fine ")}) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=30) as http:
        yield http


@pytest.fixture(autouse=True)
def _the_server_still_answers(request):
    client = request.getfixturevalue("client") if "client" in request.fixturenames else None
    yield
    if client is not None:
        answer = client.post(COMPLETIONS, json={"prompt": "x", "max_tokens": 5})
        assert answer.json()["choices"][0]["text"] == "fine "


def post(client: httpx.Client, path: str, body: str | bytes) -> httpx.Response:
    return client.post(path, content=body, headers={"content-type": "application/json"})


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[
            ("max_tokens", value)
            for value in ("1e9", "1000000000", "-1", "0", "true", '"5"', "NaN", "1e400", "1.5", "[1]")
        ],
        *[("n", value) for value in ("1000000", "0", "-1", "true", '"1"', "9")],
        *[("temperature", value) for value in ("-1", "NaN", "2.1", "1e400", "-1e400", '"1"', "true", "{}")],
        *[("top_p", value) for value in ("0", "2", "-0.1", "NaN", '"1"', "false")],
        *[("top_k", value) for value in ("-1", "1e3", "1000001", "true")],
        *[("repetition_penalty", value) for value in ("0", "-1", "10.5", "NaN", "1e-300", "Infinity")],
        *[("presence_penalty", value) for value in ("0.5", "-3", "NaN", '"0"')],
        *[("frequency_penalty", value) for value in ("2", "true")],
        *[("seed", value) for value in (str(2**80), str(2**63), "-1", "1.0", "true", '"7"')],
        ("stop", json.dumps(["x"] * 100_000)),
        ("stop", json.dumps("x" * 129)),
        ("stop", "5"),
        ("stop", '[""]'),
        ("stop", "[5]"),
        ("stream", '"true"'),
        ("stream", "1"),
        ("user", json.dumps("x" * 257)),
        ("logit_bias", '{"5": 100}'),
        ("best_of", "3"),
        ("tools", '[{"type": "function"}]'),
    ],
)
def test_a_value_out_of_range_gets_400_with_its_field_named(client, path, field, value):
    start = '"prompt": "x"' if path == COMPLETIONS else f'"messages": {json.dumps(USER)}'
    response = post(client, path, f'{{{start}, "{field}": {value}}}')
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"].partition(".")[0] == field
    assert error["type"] == "invalid_request_error"
    assert field in error["message"]
    assert len(error["message"]) < 400


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETIONS, {}, "prompt"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"prompt": [[]]}, "prompt"),
        (COMPLETIONS, {"prompt": [True]}, "prompt"),
        (COMPLETIONS, {"prompt": [1, "x"]}, "prompt"),
        (COMPLETIONS, {"prompt": [-1]}, "prompt"),
        (COMPLETIONS, {"prompt": [257]}, "prompt"),
        (COMPLETIONS, {"prompt": [2**80]}, "prompt"),
        (COMPLETIONS, {"prompt": 5}, "prompt"),
        (COMPLETIONS, {"prompt": ["x"] * 17}, "n"),
        (COMPLETIONS, {"prompt": ["x"] * 9, "n": 2}, "n"),
        (COMPLETIONS, {"prompt": "x", "temprature": 1}, "temprature"),
        (COMPLETIONS, {"prompt": "x", "unknown": None}, "unknown"),
        (COMPLETIONS, {"prompt": "x", "messages": USER}, "messages"),
        (COMPLETIONS, {"prompt": "x", "stream_options": {"include_usage": True}}, "stream_options"),
        (COMPLETIONS, {"prompt": "x", "stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        (CHAT, {}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages.0.content"),
        (CHAT, {"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        (CHAT, {"messages": [*USER, {"role": "user", "content": "x", "name": "y"}]}, "messages.1.name"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        (CHAT, {"messages": USER * 1025}, "messages"),
        (CHAT, {"messages": USER, "max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    ],
)
def test_a_wrong_form_gets_400_with_the_place_named(client, path, body, param):
    response = client.post(path, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_an_unknown_field_is_told_the_nearest_known_one(client):
    error = client.post(COMPLETIONS, json={"prompt": "x", "temprature": 1}).json()["error"]
    assert "'temperature'" in error["message"]


def test_null_and_values_that_ask_for_nothing_are_accepted(client):
    body = {"prompt": "x", "max_tokens": 5, "temperature": None, "stop": None, "logprobs": None, "presence_penalty": 0}
    body |= {"frequency_penalty": 0.0, "logit_bias": {}, "best_of": 1, "echo": False, "user": "me", "model": None}
    assert client.post(COMPLETIONS, json=body).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b'{"prompt": "x",}',
        b"{'prompt': 'x'}",
        b"\xef\xbb\xbf{}",
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": ["fine", "\\udfff"]}',
        b'{"prompt": "x", "\\ud800": 1}',
        b'{"prompt": "x", "prompt": "y"}',
        b'{"prompt": "x", "stream_options": {"include_usage": true, "include_usage": false}}',
        b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'"' + b'\\"' * 100_000,
        b"{" + b",".join(b'"f%d": 1' % index for index in range(50_000)) + b"}",
    ],
    ids=range(21),
)
def test_a_body_that_is_no_proper_json_object_gets_400(client, body):
    response = post(client, COMPLETIONS, body)
    assert response.status_code == 400
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {},
    ],
)
def test_another_content_type_gets_415(server, headers):
    response = httpx.post(server.url + COMPLETIONS, content=b'{"prompt": "x"}', headers=headers)
    assert response.status_code == 415
    packed = "compressed bodies are not read; send the body as it is"
    found = headers.get("content-type", "none")
    kind = f"the content type is not JSON; found '{found}'; wanted Content-Type: application/json"
    assert response.json()["error"]["message"] == (packed if "content-encoding" in headers else kind)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", COMPLETIONS), ("PUT", CHAT), ("POST", "/health"), ("DELETE", "/")]
)
def test_another_method_gets_405_with_the_allowed_ones(client, method, path):
    response = client.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"]
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/nowhere", "/v1/complations", "/v1/models/", "/health/", "/%00", "/" + "x" * 10_000])
def test_an_unknown_path_gets_404_in_the_same_form(client, path):
    response = client.get(path)
    assert response.status_code == 404
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    "name", ["../m", "/etc/passwd", "..", "%2e%2e%2fm", "m\x00", "m/../m", "x" * 10_000, "", "M", "модель", "\\..\\m"]
)
def test_model_names_reach_no_file(client, name):
    response = client.post(COMPLETIONS, json={"model": name, "prompt": "x"})
    assert response.status_code in (400, 404)
    assert response.json()["error"]["param"] == "model"


@pytest.mark.parametrize(
    "path", ["/v1/models/%2e%2e", "/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/%00", "/%2e%2e/m"]
)
def test_model_paths_reach_no_file(server, path):
    assert raw(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())[0] in (400, 404)


def test_a_missing_model_is_told_the_nearest_name(client):
    response = client.post(COMPLETIONS, json={"model": "n", "prompt": "x"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_a_body_over_the_limit_gets_413_declared_or_chunked(client):
    big = b'{"prompt": "' + b"x" * (1 << 20) + b'"}'
    for content in (big, iter([big[:1000], big[1000:]])):
        response = client.post(COMPLETIONS, content=content, headers={"content-type": "application/json"})
        assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")
        assert "at most 1048576 bytes" in response.json()["error"]["message"]


def test_a_body_at_the_limit_is_read(client):
    text = '{"prompt": "x", "max_tokens": 1}'
    response = post(client, COMPLETIONS, text + " " * ((1 << 20) - len(text)))
    assert response.status_code == 200


def test_a_huge_declared_body_is_refused_before_it_is_sent(server):
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    status, _ = raw(server, f"{head}Content-Length: 99999999999\r\n\r\n".encode())
    assert status == 413
    status, _ = raw(server, f"{head}Content-Length: {2 << 20}\r\nExpect: 100-continue\r\n\r\n".encode())
    assert status == 413


def test_an_endless_chunked_body_is_cut_off(server):
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connect(server) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        sent = 0
        try:
            while sent < 64 << 20:
                connection.sendall(chunk)
                sent += len(chunk)
        except OSError:
            pass
    assert sent < 64 << 20


def test_a_content_length_that_lies_low_does_not_smuggle_a_request(server):
    body = b'{"prompt": "x", "max_tokens": 1}GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n'
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    both = f"{head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    assert raw(server, both + body)[0] == 400


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 100_000 + b"\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["one long header", "a header without end", "1e5 headers", "a long path"],
)
def test_a_head_over_the_limit_gets_431_and_the_connection_is_closed(server, head):
    status, rest = raw(server, head)
    assert status == 431
    assert b"connection: close" in rest.lower()
    message = "the request line and headers are too large; wanted at most 16384 bytes"
    assert json.loads(rest.partition(b"\r\n\r\n")[2])["error"]["message"] == message


def test_a_head_sent_too_slowly_gets_408(monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    with BackgroundServer({"m": FakeModel()}) as slow, connect(slow) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        deadline = time.monotonic() + 10
        answer = b""
        while not answer and time.monotonic() < deadline:
            try:
                connection.sendall(b"X: y\r\n")
                connection.settimeout(0.05)
                answer = connection.recv(4096)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408")
        message = "the headers did not arrive within 0.2 s; send the request again"
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"] == message


def test_a_body_that_does_not_arrive_gets_408(monkeypatch):
    monkeypatch.setattr(request_body, "BODY_SECONDS", 0.2)
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with BackgroundServer({"m": FakeModel()}) as slow:
        status, rest = raw(slow, f"{head}Content-Length: 100\r\n\r\n".encode())
    assert status == 408
    assert b"connection: close" in rest
    told = json.loads(rest.partition(b"\r\n\r\n")[2])["error"]["message"]
    assert told == "the body did not arrive within 0.2 s; send it again"


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error_of_ours(server, caplog):
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for _ in range(3):
        with connect(server) as connection:
            connection.sendall(f'{head}Content-Length: 100\r\n\r\n{{"prompt":'.encode())
            time.sleep(0.05)
    assert httpx.get(server.url + "/health").status_code == 200
    assert caplog.text == ""


@pytest.mark.parametrize(
    "data", [b"\x00" * 100, b"GET\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00"]
)
def test_what_is_no_http_gets_400(server, data):
    assert raw(server, data)[0] == 400


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.", "", "[::2]"]
)
def test_a_foreign_host_header_is_refused_on_loopback(server, host):
    status, _ = raw(server, f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert status == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1", "[::1]:99"])
def test_loopback_names_are_taken_as_host(server, host):
    status, _ = raw(server, f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert status == 200


def test_two_host_headers_or_none_are_refused(server):
    for head in ("Host: localhost\r\nHost: evil.example\r\n", ""):
        status, _ = raw(server, f"GET /v1/models HTTP/1.1\r\n{head}Connection: close\r\n\r\n".encode())
        assert status in (400, 403)


def test_other_origins_get_no_leave_to_read(client):
    preflight = client.options(
        COMPLETIONS, headers={"origin": "http://evil.example", "access-control-request-method": "POST"}
    )
    answer = client.get("/v1/models", headers={"origin": "http://evil.example"})
    for response in (preflight, answer):
        assert not [name for name in response.headers if name.startswith("access-control-")]


@pytest.fixture(scope="module")
def guarded():
    with BackgroundServer({"m": FakeModel("fine ")}, api_key="s3cret-key") as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/m"),
        ("GET", "/metrics"),
        ("POST", COMPLETIONS),
        ("POST", CHAT),
        ("GET", "/nowhere"),
        ("PUT", COMPLETIONS),
        ("GET", "//health"),
        ("GET", "/health/../metrics"),
    ],
)
@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer", "s3cret-key", "Basic s3cret-key", "Bearer s3cret-key2", "Bearer \xe9"]
)
def test_without_the_right_key_401_with_the_same_body(guarded, method, path, header):
    headers = {"authorization": header.encode("latin-1")} if header is not None else {}
    response = httpx.request(method, guarded.url + path, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    body = response.json()
    assert body.pop("request_id") == response.headers["x-request-id"]
    assert body == {
        "error": {
            "message": "missing or wrong API key; wanted the header Authorization: Bearer KEY",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        }
    }


def test_with_the_key_everything_works(guarded):
    headers = {"authorization": "Bearer s3cret-key"}
    answer = httpx.post(guarded.url + COMPLETIONS, json={"prompt": "x", "max_tokens": 5}, headers=headers)
    assert answer.json()["choices"][0]["text"] == "fine "
    assert httpx.get(guarded.url + "/nowhere", headers=headers).status_code == 404


@pytest.mark.parametrize("path", ["/health", "/ready", "/"])
def test_probes_and_the_page_need_no_key(guarded, path):
    assert httpx.get(guarded.url + path).status_code == 200


def connect(server: BackgroundServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=20)


def raw(server: BackgroundServer, data: bytes) -> tuple[int, bytes]:
    """Send bytes as they are; return the status and all that came back until the first reply or the end."""
    with connect(server) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR) if not data.endswith(b"\r\n\r\n") else None
        except OSError:
            pass
        answer = b""
        while b"\r\n\r\n" not in answer:
            part = connection.recv(65536)
            if not part:
                break
            answer += part
    return int(answer.split(b" ", 2)[1]), answer
