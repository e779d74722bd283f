"""One HTTP connection: uvicorn's httptools protocol with limits, and with a short way for short requests.

A request that is whole in one piece, and whose route says so (`starts_at_once` of the application), is answered where
it arrives, without a task: what it costs is then the work itself. All others go uvicorn's way.
A head that is the one before it on its connection but for the length, as programs send them, is not parsed again, and
takes the application's shortcut where there is one (see `shortcut`).
A connection has one timer, which is moved only when it rings. Not here: the limits (see `protocol`), answers (see
`exchange`).
"""

from __future__ import annotations

import asyncio
import contextvars
import http
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from deepseek.serve.rest.begun import Begun
from deepseek.serve.rest.body import WHOLE_BODY
from deepseek.serve.rest.door import ENTRY, Entry
from deepseek.serve.rest.exchange import Exchange
from deepseek.serve.rest.refusals import refusal
from deepseek.serve.rest.shortcut import KnownHead, Told, known_head

if TYPE_CHECKING:
    from asyncio.events import TimerHandle

    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as _Base

    from deepseek.serve.rest.reply import Reply
else:
    _Base = object


class Connection(_Base):
    """What `protocol.limited_protocol` puts before uvicorn's protocol class."""

    max_connections: int
    head_limit: int
    head_seconds: float
    write_seconds: float
    exchange: type[Exchange]
    parse_url: Callable[[bytes], Any]
    _head_bytes = 0
    _raw_bytes = 0
    _in_head = True
    _timer: TimerHandle | None = None
    _due: float | None = None
    _late_head = False
    _stalled: TimerHandle | None = None
    _refusal: http.HTTPStatus | None = None
    _held: Exchange | None = None
    _between = True
    _working: asyncio.Task[None] | None = None
    _known: KnownHead | None = None
    _defaults: tuple[Any, bytes] = (None, b"")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._at_once: Callable[[Any], bool] | None = getattr(self.app, "starts_at_once", None)
        self._whole: Any = getattr(self.app, "whole", None)
        self._is_for_model: Callable[[Any], bool] | None = getattr(self.app, "is_for_model", None)
        self._asgi = {"version": self.asgi_version, "spec_version": "2.3"}
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the timers go."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._moves()
        super().connection_lost(exc)
        if self._working is not None:
            self._working.cancel()  # nobody waits for it any more

    def pause_writing(self) -> None:
        """Begin to count the time in which the client takes nothing."""
        self._stalled = self.loop.call_later(self.write_seconds, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        """Stop counting."""
        self._moves()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Parse, and start the request that came whole."""
        known = self._known
        body = known.body_of(data) if known is not None and self._is_idle() else None
        if known is not None and body is not None:
            self._answer_again(known, body)
            return
        super().data_received(data)
        if self._held is not None:
            held, self._held = self._held, None
            if held.more_body or self.transport.is_closing():
                self._start_asgi_task(held, self.app)
            else:
                self._known = self._known_head(data, held)
                self._answer_at_once(held)
        if self._in_head and not self.transport.is_closing():
            self._raw_bytes += len(data)  # httptools keeps an unfinished header to itself: count what came in
            if self._raw_bytes > self.head_limit:
                self._refuse(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            elif not self._late_head and (self.cycle is None or self.cycle.response_complete):
                self._wait_for_head()

    def on_message_begin(self) -> None:
        """Begin a head."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._head_bytes = self._raw_bytes = 0
        self._in_head = True
        self._between = False
        if len(self.connections) > self.max_connections:
            self._end(http.HTTPStatus.SERVICE_UNAVAILABLE)

    def on_url(self, url: bytes) -> None:
        """Take a piece of the request's target."""
        self.url += url
        self._head_bytes += len(url)
        if self._head_bytes > self.head_limit:
            self._end(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self.head_limit:
            self._end(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Make the request's scope, and start it or have it wait for its turn."""
        self._in_head = self._late_head = False
        self._due = None
        parser = self.parser
        version = parser.get_http_version()
        url = self.parse_url(self.url)
        raw_path = url.path
        path = raw_path.decode("ascii")
        scope: Any = {
            "type": "http",
            "asgi": self._asgi,
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "method": parser.get_method().decode("ascii"),
            "path": self.root_path + (unquote(path) if "%" in path else path),
            "raw_path": self.root_path.encode("ascii") + raw_path,
            "query_string": url.query or b"",
            "headers": self.headers,
            "state": self.app_state.copy(),
        }
        self.scope = scope
        if parser.should_upgrade() and self._should_upgrade():
            return
        before: Any = self.cycle
        self.cycle = self.exchange(self, scope, keep_alive=version != "1.0" and parser.should_keep_alive())
        if before is not None and not before.response_complete:  # sent before the answer to the one before it
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
        elif self._at_once is not None and not self.expect_100_continue and self._at_once(scope):
            self._held = self.cycle
        else:
            self._start_asgi_task(self.cycle, self.app)

    def on_message_complete(self) -> None:
        """End a request."""
        self._between = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request, or begin to wait for one."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._in_head:
            self._wait_for_head()
        else:
            self._wait(self.timeout_keep_alive)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or what a limit ended."""
        self._refuse(self._refusal or http.HTTPStatus.BAD_REQUEST)

    def _known_head(self, data: bytes, held: Exchange) -> KnownHead | None:
        scope: Any = held.scope
        if not self._between or not held.keep_alive:
            return None
        return known_head(data, scope, getattr(self.app, "shortcut", None))

    def _answer_again(self, known: KnownHead, body: bytes) -> None:
        """Answer a request with a head that is known, by its shortcut if it has one."""
        self._due = None
        entry: Entry | None = None
        if known.shortcut is not None and not self.access_log and not self.flow.write_paused:
            answer = known.shortcut(body)
            if isinstance(answer, Told):
                status, rest = answer
                self.transport.write(b"".join((self.exchange.status_lines[status], self._default_lines(), rest)))
                self.server_state.total_requests += 1
                self._wait(self.timeout_keep_alive)
                return
            entry = answer
        state = self.app_state.copy()
        if entry is not None:
            state |= {ENTRY: entry, "request_id": entry.id, "key": entry.key}
        scope = {**known.scope_of(body), "state": state, WHOLE_BODY: body}
        self.cycle = held = self.exchange(self, scope, keep_alive=True)
        held.more_body = False
        self._answer_at_once(held)

    def _default_lines(self) -> bytes:
        """Return uvicorn's own headers as lines; it makes them anew every second."""
        headers, lines = self._defaults
        if headers is not self.server_state.default_headers:
            headers = self.server_state.default_headers
            lines = b"".join(b"%b: %b\r\n" % header for header in headers)
            self._defaults = headers, lines
        return lines

    def _answer_at_once(self, exchange: Exchange) -> None:
        """Run a request up to its first wait, in a context of its own as a task would; a task does what is left."""
        context = contextvars.copy_context()
        begun: Begun[Reply] = context.run(Begun, self._whole(exchange.scope, exchange.receive))
        if not begun.done or not exchange.write(begun.result):

            async def rest(scope: Any, receive: Any, send: Any) -> None:
                await (await begun)(scope, receive, send)

            self._work(exchange, rest, context)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Have a request answered by a task; one for a model ends when its client leaves."""
        if self._is_for_model is not None and self._is_for_model(cycle.scope):
            self._work(cycle, app, None)
        else:
            super()._start_asgi_task(cycle, app)

    def _work(self, exchange: Exchange, app: Any, context: contextvars.Context | None) -> None:
        self._working = task = self.loop.create_task(exchange.run_asgi(exchange.until_left(app)), context=context)
        task.add_done_callback(self._worked)
        self.tasks.add(task)

    def _worked(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if self._working is task:
            self._working = None

    def _is_idle(self) -> bool:
        """Return whether the next byte begins a request, and none is being answered."""
        return self._between and self.cycle.response_complete and not self.transport.is_closing()

    def _end(self, status: http.HTTPStatus) -> None:
        self._refusal = status
        raise ValueError(status.phrase)  # ends the parser; send_400_response follows

    def _wait_for_head(self) -> None:
        self._late_head = True
        self._wait(self.head_seconds)

    def _wait(self, seconds: float) -> None:
        """Have `_ring` called after a time; a timer that rings before it is left as it is."""
        self._due = due = self.loop.time() + seconds
        if self._timer is not None and self._timer.when() > due:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self.loop.call_at(due, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._due is None:
            return
        if self.loop.time() < self._due:
            self._timer = self.loop.call_at(self._due, self._ring)
        elif self._late_head:
            self._refuse(http.HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.timeout_keep_alive_handler()

    def _moves(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _refuse(self, status: http.HTTPStatus) -> None:
        self._due = None
        if self.transport.is_closing():
            return
        self.transport.write(refusal(status, self.head_limit, self.head_seconds))
        self.transport.close()
