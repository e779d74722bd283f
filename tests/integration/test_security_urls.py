"""URLs in requests: which are fetched at all, from which address, and what the other side may do."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from deepseek.errors import ConfigError, RequestError
from deepseek.serve.security.urls import Fetcher, is_public

PUBLIC = "93.184.215.14"


@contextmanager
def other_side(answer: bytes | Callable[[socket.socket], None]) -> Iterator[tuple[Fetcher, list[str], list[bytes]]]:
    """Yield a fetcher whose connections to public addresses end at a small server here, with what both saw."""
    listener = socket.create_server(("127.0.0.1", 0))
    connected: list[str] = []
    heard: list[bytes] = []

    def run() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                heard.append(client.recv(65536))
                try:
                    answer(client) if callable(answer) else client.sendall(answer)
                except OSError:
                    pass

    def connect(address: str, port: int, seconds: float) -> socket.socket:
        connected.append(f"{address}:{port}")
        return socket.create_connection(listener.getsockname(), timeout=seconds)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    resolve = {"good.example": [PUBLIC, "2606:4700::1111"], "private.example": [PUBLIC, "10.0.0.1"]}
    fetcher = Fetcher(
        ["good.example", "private.example", "good.example:8443", "127.0.0.1"],
        seconds=1.0,
        resolve=lambda host, port: resolve.get(host) or [host],
        connect=connect,
    )
    try:
        yield fetcher, connected, heard
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def reply(body: bytes, head: str = "HTTP/1.1 200 OK", **headers: object) -> bytes:
    lines = [head, *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_the_content_comes_from_the_address_that_was_checked_with_the_name_kept():
    with other_side(reply(b"pixels", Content_Length=6)) as (fetcher, connected, heard):
        assert fetcher.get("http://GOOD.example/a.png?size=1", 100) == b"pixels"
        assert fetcher.get("http://good.example.:8443/", 6) == b"pixels"
    assert connected == [f"{PUBLIC}:80", f"{PUBLIC}:8443"]
    assert heard[0].startswith(b"GET /a.png?size=1 HTTP/1.1\r\nHost: good.example\r\n")
    assert b"Host: good.example:8443\r\n" in heard[1]


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1/",
        "http://localhost/",
        "http://[::1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://evil.example/",
        "http://private.example/",
        "http://good.example:22/",
        "http://good.example:99999/",
        "http://good.example:8080/",
        "http://good.example@127.0.0.1/",
        "http://user:pass@good.example/",
        "http://127.0.0.1\\@good.example/",
        "http://good.example\\.evil.example/",
        "http://good.example%2eevil.example/",
        "http://good.example/\r\nX: y",
        "http://good.example/ x",
        "http://good.example/\x00",
        "http://good.exämple/",
        "ftp://good.example/",
        "gopher://good.example/",
        "data:image/png;base64,AAAA",
        "//good.example/",
        "good.example",
        "http:///",
        "http://",
        "",
        "http://[good.example/",
        "http://good.example/" + "x" * 3000,
    ],
)
def test_another_host_scheme_or_spelling_is_refused_without_a_connection(url):
    with other_side(b"") as (fetcher, connected, _):
        with pytest.raises(RequestError) as refused:
            fetcher.get(url, 100)
    assert (refused.value.status, refused.value.field) == (400, "url")
    assert connected == []


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://169.254.169.254/latest/meta-data/", "URLs on this host are not fetched"),
        ("http://127.0.0.1/", "this host does not lead to public addresses only"),  # though it is allowed
        ("http://private.example/", "this host does not lead to public addresses only"),
        ("file:///etc/passwd", "only http and https URLs are fetched"),
        ("http://user:pass@good.example/", "a URL with a user name or password is not fetched"),
        ("http://good.example/ x", "the URL is too long or has characters that a URL can't have"),
    ],
)
def test_a_url_that_is_refused_is_told_why(url, problem):
    with other_side(b"") as (fetcher, _, _), pytest.raises(RequestError) as refused:
        fetcher.get(url, 100)
    assert refused.value.problem == problem


def test_without_allowed_hosts_nothing_is_fetched_or_even_resolved():
    fetcher = Fetcher(resolve=lambda host, port: pytest.fail("it was resolved"))
    with pytest.raises(RequestError, match="not fetched"):
        fetcher.get("https://good.example/", 100)


@pytest.mark.parametrize(
    "address",
    """0.0.0.0 10.1.2.3 100.64.0.1 127.0.0.1 127.1.2.3 169.254.169.254 172.16.0.1 192.0.0.8 192.0.2.1 192.168.1.1
    198.18.0.1 198.51.100.7 203.0.113.9 224.0.0.1 240.0.0.1 255.255.255.255 :: ::1 ::ffff:127.0.0.1 ::ffff:8.8.8.8
    fe80::1 fe80::1%eth0 fec0::1 fc00::1 fd00:ec2::254 ff02::1 2001:db8::1 2002:7f00:1::1 64:ff9b::7f00:1
    64:ff9b:1::a00:1 2001:0:4136:e378:8000:63bf:3fff:fdd2 ::7f00:1 localhost 127.1""".split(),
)
def test_addresses_that_are_not_of_the_open_internet(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", PUBLIC, "2606:4700::1111", "2a00:1450:4001:80b::200e"])
def test_addresses_of_the_open_internet(address):
    assert is_public(address)


@pytest.mark.parametrize("location", ["http://127.0.0.1/", "http://good.example/b", "file:///etc/passwd"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status, location):
    with other_side(reply(b"", f"HTTP/1.1 {status} Moved", Location=location)) as (fetcher, connected, _):
        with pytest.raises(RequestError) as refused:
            fetcher.get("http://good.example/", 100)
    assert (refused.value.status, refused.value.problem) == (400, "the URL leads elsewhere; redirects are not followed")
    assert len(connected) == 1


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (reply(b"x" * 101, Content_Length=101), 413),
        (reply(b"", Content_Length=10**15), 413),
        (reply(b"x" * 5000), 413),
        (reply((b"64\r\n" + b"x" * 100 + b"\r\n") * 2 + b"0\r\n\r\n", Transfer_Encoding="chunked"), 413),
        (reply(b"short", Content_Length=50), 502),
        (reply(b"5\r\nhi", Transfer_Encoding="chunked"), 502),
        (reply(b"x", Content_Length=1, Content_Encoding="gzip"), 502),
        (reply(b"", "HTTP/1.1 404 No", Content_Length=0), 502),
        (reply(b"", "HTTP/1.1 200 OK", X="y" * 70_000), 502),
        (reply(b"", "HTTP/1.1 200 OK", **{f"h{number}": 1 for number in range(200)}), 502),
        (b"SSH-2.0-OpenSSH\r\n", 502),
        (b"", 502),
    ],
    ids=range(12),
)  # fmt: skip
def test_an_answer_that_is_too_large_or_wrong_is_refused(answer, status):
    with other_side(answer) as (fetcher, _, _), pytest.raises(RequestError) as refused:
        fetcher.get("http://good.example/", 100)
    assert refused.value.status == status


def test_a_content_length_that_lies_low_gives_no_more_than_it_says():
    with other_side(reply(b"pixels and more", Content_Length=6)) as (fetcher, _, _):
        assert fetcher.get("http://good.example/", 100) == b"pixels"


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n"])
def test_a_side_that_drips_is_cut_off_in_time(start):
    stop = threading.Event()

    def drip(client: socket.socket) -> None:
        client.sendall(start)
        while not stop.wait(0.02):
            client.sendall(b"x")

    with other_side(drip) as (fetcher, _, _):
        fetcher._seconds = 0.3
        began = time.monotonic()
        with pytest.raises(RequestError) as refused:
            fetcher.get("http://good.example/", 10_000_000)
        stop.set()
    assert refused.value.status == 504
    assert time.monotonic() - began < 30


def test_a_name_that_does_not_resolve_or_answer_is_no_fault_of_the_server():
    def refuse(address: str, port: int, seconds: float) -> socket.socket:
        raise ConnectionRefusedError

    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror

    for fetcher in (
        Fetcher(["good.example"], resolve=lambda host, port: [PUBLIC], connect=refuse),
        Fetcher(["good.example"], resolve=unknown),
    ):
        with pytest.raises(RequestError) as refused:
            fetcher.get("https://good.example/", 100)
        assert refused.value.status == 502


def test_https_to_a_side_without_tls_fails_as_theirs():
    with other_side(b"HTTP/1.1 400 Bad\r\n\r\n") as (fetcher, connected, _), pytest.raises(RequestError) as refused:
        fetcher.get("https://good.example/", 100)
    assert refused.value.status == 502
    assert connected == [f"{PUBLIC}:443"]


@pytest.mark.parametrize("host", ["", "*", "http://good.example", "a b", "good.example:", "x:0", "x:99999", "[::1]"])
def test_what_is_no_host_can_not_be_allowed(host):
    if host == "good.example:":
        assert Fetcher([host])._allowed == {"good.example"}
        return
    with pytest.raises(ConfigError, match="host"):
        Fetcher([host])
