"""Many requests on one connection: answered one by one, whatever their pieces; checks hold for each of them."""

from __future__ import annotations

import json
import socket
import time

import pytest

from deepseek.serve import BackgroundServer
from deepseek.serve.options import Safety
from deepseek.serve.security.keys import new_key
from tests.fake_tensor import LoneInput

PATH = "/v1/models/lone:predict"


@pytest.fixture(scope="module")
def server():
    with BackgroundServer({"lone": LoneInput()}) as running:
        yield running


def request(values: list[float], path: str = PATH, extra: str = "", body: bytes | None = None) -> bytes:
    """Return the bytes of a request; all of as many digits have the same head."""
    body = json.dumps({"instances": [values]}).encode() if body is None else body
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{extra}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Client:
    """One connection."""

    def __init__(self, server: BackgroundServer) -> None:
        self.socket = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=20)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        status = int(self.file.readline().split()[1])
        headers = {}
        while (line := self.file.readline().strip()) != b"":
            name, _, value = line.decode().partition(": ")
            headers[name] = value
        return status, headers, self.file.read(int(headers["content-length"]))

    def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        self.socket.sendall(data)
        return self.answer()


def sums(body: bytes) -> list[float]:
    return json.loads(body)["predictions"][0]["y"]


def test_requests_with_one_head_are_answered_each_by_its_own_body(server):
    with Client(server) as client:
        ids = set()
        for index in range(9):
            status, headers, body = client.ask(request([index, 1, 0, 2]))
            assert (status, sums(body)) == (200, [index + 1.0, 2.0])
            ids.add(headers["x-request-id"])
        assert len(ids) == 9


def test_a_request_in_pieces_after_one_in_one_piece(server):
    data = request([1, 2, 3, 4])
    for cut in (1, len(data) // 2, data.index(b"\r\n\r\n") + 4, len(data) - 1):
        with Client(server) as client:
            for _ in range(2):
                assert sums(client.ask(data)[2]) == [3.0, 7.0]
                client.socket.sendall(data[:cut])
                time.sleep(0.02)
                assert sums(client.ask(data[cut:])[2]) == [3.0, 7.0]


def test_requests_sent_before_the_answers_are_answered_in_their_order(server):
    with Client(server) as client:
        for count in (1, 5, 2):
            client.socket.sendall(b"".join(request([index, 0, 0, 1]) for index in range(count)))
            assert [sums(client.answer()[2])[0] for _ in range(count)] == [float(index) for index in range(count)]


def test_an_error_between_good_requests_leaves_the_connection_as_it_is(server):
    with Client(server) as client:
        good = request([1, 2, 3, 4])
        size = len(good.partition(b"\r\n\r\n")[2])
        assert client.ask(good)[0] == 200
        assert client.ask(request([], body=b"{" * size))[0] == 400
        assert client.ask(request([], body=b'{"instances":[[NaN,1,1,1]]}'.ljust(size)))[0] == 400
        assert sums(client.ask(good)[2]) == [3.0, 7.0]
        assert client.ask(request([1, 2, 3, 4], "/v1/models/none:predict"))[0] == 404
        assert client.ask(good)[0] == 200


def test_a_body_that_a_header_makes_special_is_refused_each_time(server):
    with Client(server) as client:
        for _ in range(3):
            assert client.ask(request([1, 2, 3, 4]))[0] == 200
        status, headers, _ = client.ask(request([1, 2, 3, 4], extra="Content-Encoding: gzip\r\n"))
        assert (status, headers["connection"]) == (415, "close")


def test_a_key_that_is_taken_away_is_refused_on_an_open_connection(tmp_path):
    file = tmp_path / "keys.txt"
    (mine, line), (_, other) = new_key("mine"), new_key("other")
    file.write_text(f"{line}\n{other}\n")
    with BackgroundServer({"lone": LoneInput()}, safety=Safety(api_keys=file)) as running, Client(running) as client:
        data = request([1, 2, 3, 4], extra=f"Authorization: Bearer {mine}\r\n")
        assert [client.ask(data)[0] for _ in range(3)] == [200, 200, 200]
        file.write_text(f"{other}\n")
        running._running.guard.keys.refresh(force=True)
        assert client.ask(data)[0] == 401


def test_every_request_of_one_head_counts_for_the_rate():
    with (
        BackgroundServer({"lone": LoneInput()}, safety=Safety(requests_per_minute=18)) as running,
        Client(running) as client,
    ):
        answers = [client.ask(request([1, 2, 3, 4])) for _ in range(5)]
    assert [status for status, _, _ in answers] == [200, 200, 200, 429, 429]
    assert int(answers[-1][1]["retry-after"]) >= 1
