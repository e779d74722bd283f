"""The shortcut of a request for a model whose head came before on its connection: no scope, no task, one write.

What its head decides was decided when it came first: Host, path, how its body is to be read. Key, rate and the model's
limits are looked at each time. Heads are the same where they differ in Content-Length at most.
Not here: models (see `predict`, `kserve`), counts and errors (see `gateway`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from deepseek.serve.rest.door import Entry
from deepseek.serve.rest.reply import Reply

if TYPE_CHECKING:
    from starlette.types import Scope

AtOnce = Callable[[bytes], bytes | None]
"""From a body to the JSON of its answer; None where the answer must be waited for. Raises RequestError."""

SHORT_BODY = 16 << 10
"""Bytes of the longest body that is answered where it arrives; all else is done beside the event loop."""
_LENGTH = b"\r\ncontent-length:"
_DIGITS = 12


class Told(NamedTuple):
    """An answer: its status; and its headers, the empty line and its body."""

    status: int
    rest: bytes


class Template:
    """An answer that is the same for many requests but for their ids."""

    __slots__ = ("_parts", "_status")

    def __init__(self, answer: Told, request_id: str) -> None:
        self._status = answer.status
        self._parts = answer.rest.split(request_id.encode())

    def told(self, request_id: str) -> Told:
        """Return it to a request."""
        return Told(self._status, request_id.encode().join(self._parts))


Shortcut = Callable[[bytes], Told | Entry]
"""From a body to the answer; to the request's entry where only the long way has an answer, which goes on with it."""


class KnownHead(NamedTuple):
    """A head that was let in, parted where the body's length stands."""

    before: bytes
    after: bytes
    scope: Any
    shortcut: Shortcut | None

    def body_of(self, data: bytes) -> bytes | None:
        """Return the body of a request that is whole in `data` and has this head, None of any other."""
        start = len(self.before)
        if not data.startswith(self.before):
            return None
        end = data.find(b"\r", start, start + _DIGITS)
        if end < 0 or not data.startswith(self.after, end):
            return None
        body, digits = data[end + len(self.after) :], data[start:end]
        return body if digits.isdigit() and int(digits) == len(body) else None

    def scope_of(self, body: bytes) -> Scope:
        """Return the scope of a request with this head and `body`, but for its state."""
        length = b"%d" % len(body)
        headers = [(name, length if name == b"content-length" else value) for name, value in self.scope["headers"]]
        return {**self.scope, "headers": headers}


def known_head(data: bytes, scope: Scope, shortcut: Callable[[Scope], Shortcut | None] | None) -> KnownHead | None:
    """Return the head of a request that `data` is the whole of; None where its headers say something special."""
    headers = dict(scope["headers"])
    end = data.find(b"\r\n\r\n") + 4
    head = data[:end]
    lower = head.lower()
    if b"content-encoding" in headers or b"expect" in headers or lower.count(_LENGTH) != 1:
        return None
    start = lower.index(_LENGTH) + len(_LENGTH)
    while data[start : start + 1] == b" ":
        start += 1
    stop = data.index(b"\r", start)
    digits = data[start:stop]
    if not digits.isdigit() or end + int(digits) != len(data):
        return None
    return KnownHead(data[:start], data[stop:end], scope, shortcut(scope) if shortcut is not None else None)


def told(reply: Reply, request_id: str) -> Told:
    """Return a whole reply, as it is told. The connection goes on: its body was read."""
    headers = (*reply.headers, (b"x-request-id", request_id.encode()))
    lines = [b"%b: %b\r\n" % header for header in headers if header[0] != b"connection"]
    return Told(reply.status, b"".join((*lines, b"\r\n", reply.body)))


_JSON = b"".join(
    b"%b: %b\r\n" % header for header in Reply(b"", "application/json").headers if header[0] != b"content-length"
)


def told_json(body: bytes, request_id: str) -> Told:
    """Return what `told` does of a reply of JSON."""
    return Told(
        200, b"%bcontent-length: %d\r\nx-request-id: %b\r\n\r\n%b" % (_JSON, len(body), request_id.encode(), body)
    )
