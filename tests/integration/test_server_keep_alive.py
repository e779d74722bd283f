"""Many requests on one connection: answered one by one, whatever their pieces; checks hold for each of them."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable

import pytest

from deepseek.serve import BackgroundServer
from deepseek.serve.hosted import Hosted
from deepseek.serve.options import Safety
from deepseek.serve.security.keys import new_key
from deepseek.serve.tensor.limits import TensorLimits
from tests.fake_tensor import FakeTensorModel, LoneInput

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


def infer(values: list[float], more: dict[str, object] | None = None) -> bytes:
    """Return the bytes of a request by the inference protocol."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(values)], "data": values}
    return request([], "/v2/models/lone/infer", body=json.dumps({"inputs": [tensor], **(more or {})}).encode())


ASKED = [
    request([1, 2, 3, 4]),
    request([1.25, -2, 1e3, 4]),
    request([1, 2, 3]),
    request([1, 2, 3, 4, 5]),
    request([1, 2, "3", 4]),
    request([], body=b'{"instances":[[1,2,3,4]],"instances":[[1,2,3,4]]}'),
    request([], body=b'{"instances":[[1,2,3,4],[5,6,7,8]]}'),
    request([], body=b'{"instances":[],"more":1}'),
    request([], body=b"[" * 100_000),
    request([], body=b'{"instances":[[1,2,3,4]],"\xff":1}'),
    request([], body=b'{"instances":[' + b" " * 20_000 + b"[1,2,3,4]]}"),
    request([], body=b""),
    infer([1, 2, 3, 4]),
    infer([1, 2, 3, 4], {"id": "mine"}),
    infer([1, 2, 3]),
    infer([1, 2, 3, 4], {"parameters": {"timeout": 1_000_000}}),
    infer([1, 2, 3, 4], {"parameters": {"binary_data_output": True}}),
    infer([1, 2, 3, 4], {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]}),
    infer([1, 2, 3, 4], {"outputs": [{"name": "z"}]}),
]


@pytest.mark.parametrize("first", [ASKED[0], infer([1, 2, 3, 4])], ids=["predict", "infer"])
def test_whatever_follows_a_known_head_gets_the_answer_of_a_new_connection(server, first):
    for data in ASKED:
        with Client(server) as client:
            wanted = client.ask(data)
        with Client(server) as client:
            assert [client.ask(first)[0] for _ in range(3)] == [200, 200, 200]
            found = client.ask(data)
        assert found[0] == wanted[0]
        assert without_ids(found) == without_ids(wanted)


def without_ids(answer: tuple[int, dict[str, str], bytes]) -> tuple[dict[str, str], bytes]:
    """Return headers and body without what differs from request to request or from second to second."""
    headers = {name: value for name, value in answer[1].items() if name not in ("x-request-id", "date", "connection")}
    return headers, answer[2].replace(answer[1]["x-request-id"].encode(), b"ID")


def test_bodies_of_other_lengths_share_a_head(server):
    with Client(server) as client:
        for index in (1, 22, 333, 4444, 55555):
            status, headers, body = client.ask(request([index, 0.5, 0, index]))
            assert (status, sums(body)) == (200, [index + 0.5, index])
            assert int(headers["content-length"]) == len(body)


def test_a_length_that_is_wrong_is_not_believed(server):
    good = request([1, 2, 3, 4])
    head, _, body = good.partition(b"\r\n\r\n")
    with Client(server) as client:
        assert client.ask(good)[0] == client.ask(good)[0] == 200
        longer = head.replace(b"Content-Length: ", b"Content-Length: 0") + b"\r\n\r\n" + body
        assert sums(client.ask(longer)[2]) == [3.0, 7.0]
        client.socket.sendall(head.replace(b"Content-Length: ", b"Content-Length: -") + b"\r\n\r\n" + body)
        assert client.answer()[0] == 400


def test_a_model_that_must_be_waited_for_counts_each_request_once():
    slow = LoneInput()
    slow.seconds = {1: 0.01}
    with (
        BackgroundServer({"lone": slow}, safety=Safety(requests_per_minute=24, concurrent=1)) as running,
        Client(running) as client,
    ):
        assert [client.ask(request([1, 2, 3, 4]))[0] for _ in range(5)] == [200, 200, 200, 200, 429]


def test_a_new_version_answers_on_a_connection_that_is_open():
    other = LoneInput()
    other.run = lambda inputs: {"y": inputs["x"][:, :2] * 0}
    with BackgroundServer({"lone": LoneInput()}) as running, Client(running) as client:
        assert [sums(client.ask(request([1, 2, 3, 4]))[2]) for _ in range(3)] == [[3.0, 7.0]] * 3
        service = running._running.service
        slot = service._slots["lone"]
        hosted = Hosted("lone", other, service.limits, version="2")
        hosted.verify()
        hosted.engine.start()
        with service._lock:
            replaced = service._switch(slot, hosted, None, None)
        assert [sums(client.ask(request([1, 2, 3, 4]))[2]) for _ in range(3)] == [[0.0, 0.0]] * 3
        for old in replaced:
            service._retire(old)
        service.unload("lone")
        assert client.ask(request([1, 2, 3, 4]))[0] == 404


@pytest.mark.parametrize("size", [1, 300], ids=["short", "long"])
def test_requests_whose_client_left_are_not_run(size):
    slow = FakeTensorModel()
    rows = {"x": ("FP32", 3, 1.0), "flag": ("BOOL", None, True), "word": ("BYTES", 1, "a" * 100)}
    inputs = [
        {
            "name": name,
            "datatype": datatype,
            "shape": [size] if width is None else [size, width],
            "data": [value] * (size * (width or 1)),
        }
        for name, (datatype, width, value) in rows.items()
    ]
    body = json.dumps({"inputs": inputs}).encode()
    data = request([], "/v2/models/slow/infer", body=body)
    with BackgroundServer({"slow": slow}, tensor_limits=TensorLimits(max_batch=1)) as running:
        slow.may_run.clear()
        first, others = Client(running), [Client(running) for _ in range(4)]
        first.socket.sendall(data)
        engine = running.service.find("slow").engine
        wait_until(lambda: engine.stats().active == 1)
        for client in others:
            client.socket.sendall(data)
        wait_until(lambda: engine.stats().waiting == 4)
        for client in others:
            client.__exit__()
        wait_until(lambda: engine.stats().cancelled == 4)
        before = slow.runs
        slow.may_run.set()
        assert first.answer()[0] == 200
        first.__exit__()
        assert slow.runs - before <= size


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
