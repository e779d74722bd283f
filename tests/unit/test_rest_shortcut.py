"""A request that is taken for one with a known head is what a parser of HTTP takes it for."""

from __future__ import annotations

import weakref

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.serve.rest.reply import json_reply
from deepseek.serve.rest.shortcut import Template, known_head, told, told_json
from deepseek.serve.rest.target import Target

HEADS = (
    b"POST /v1/models/a:predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n",
    b"POST /v1/models/a:predict HTTP/1.1\r\ncontent-length:%d\r\nHost: a\r\nContent-Type: application/json\r\n\r\n",
)


class Parsed:
    """What httptools takes for a request; `whole` where it ends with the data."""

    def __init__(self, data: bytes) -> None:
        self.url, self.body, self.whole = b"", b"", False
        self.headers: list[tuple[bytes, bytes]] = []
        httptools.HttpRequestParser(self).feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.whole = True


@given(st.sampled_from(HEADS), st.binary(max_size=40), st.binary(max_size=120))
def test_a_body_of_any_length_is_found_behind_a_known_head(head, first, second):
    known = known_head(head % len(first) + first, {"headers": Parsed(head % len(first) + first).headers}, None)
    data = head % len(second) + second
    assert known.body_of(data) == second == Parsed(data).body
    scope = known.scope_of(second)
    assert dict(scope["headers"])[b"content-length"] == b"%d" % len(second)
    assert known.body_of(data + b"P") is None
    assert not second or known.body_of(data[:-1]) is None


@given(st.integers(0, 200), st.binary(min_size=1, max_size=3), st.integers(0, 40))
def test_a_changed_head_is_either_no_known_one_or_means_the_same(place, change, size):
    head, body = HEADS[0] % size, b"x" * size
    known = known_head(head + body, {"headers": Parsed(head + body).headers}, None)
    place %= len(head)
    data = head[:place] + change + head[place:] + body
    found = known.body_of(data)
    if found is not None:
        parsed = Parsed(data)
        assert (parsed.whole, parsed.body, parsed.url) == (True, found, b"/v1/models/a:predict")


@pytest.mark.parametrize(
    "extra",
    [b"Expect: 100-continue\r\n", b"Content-Encoding: gzip\r\n", b"X-A: b\r\nContent-Length: 2\r\n"],
)
def test_heads_that_say_something_special_are_not_known(extra):
    data = b"POST / HTTP/1.1\r\n" + extra + b"Content-Length: 2\r\n\r\n{}"
    headers = [(name.lower(), value) for name, _, value in (line.partition(b": ") for line in data.split(b"\r\n")[1:4])]
    assert known_head(data, {"headers": headers}, None) is None


def test_a_request_without_a_length_is_not_known():
    assert known_head(b"POST / HTTP/1.1\r\nHost: a\r\n\r\n", {"headers": [(b"host", b"a")]}, None) is None


def test_replies_are_told_alike_on_both_ways():
    reply = json_reply({"a": 1})
    assert sorted(told(reply, "some-id").rest.split(b"\r\n")) == sorted(
        told_json(b'{"a":1}', "some-id").rest.split(b"\r\n")
    )
    again = Template(told(reply, "some-id"), "some-id").told("other-id")
    assert again == told(reply, "other-id")


class Model:
    """A model of a version, with an engine that goes with it."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.engine = Engine()


class Engine:
    """What is found for a model."""


class Names:
    """A registry of one name whose versions a test exchanges."""

    def __init__(self) -> None:
        self.changes, self.stopping, self.shared, self.looked = 0, False, False, 0
        self.model = Model("1")

    def steady(self, name: str, version: str | None) -> Model | None:
        self.looked += 1
        return None if self.shared else self.model

    def find(self, name: str, version: str | None) -> Model:
        self.looked += 1
        return self.model


def test_a_target_is_looked_up_again_after_a_change_only():
    names = Names()
    target = Target(names, "a", None, lambda hosted: hosted.engine)
    assert [target.find() for _ in range(3)] == [(names.model, names.model.engine)] * 3
    assert names.looked == 1
    names.model = Model("2")
    names.changes += 1
    assert [target.find() for _ in range(3)] == [(names.model, names.model.engine)] * 3
    assert names.looked == 2
    names.changes, names.shared = names.changes + 1, True
    for version in "345":  # by shares: each request its own
        names.model = Model(version)
        assert target.find() == (names.model, names.model.engine)


def test_a_target_does_not_keep_a_model_that_is_gone():
    names = Names()
    target = Target(names, "a", None, lambda hosted: hosted.engine)
    gone = weakref.ref(target.find()[0])
    names.model = Model("2")
    assert gone() is None
    assert target.find() == (names.model, names.model.engine)


def test_a_model_that_is_not_wanted_has_no_target():
    names = Names()
    target = Target(names, "a", None, lambda hosted: None)
    assert [target.find(), target.find()] == [None, None]
    assert names.looked == 1
