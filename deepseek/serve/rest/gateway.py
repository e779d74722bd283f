"""What every request passes first and last: the door's checks, then errors in one form, an id, counts.

It holds for every route and for websockets. A request whose head was let in before may take a shortcut, on which only
what its head does not decide is looked at. Not here: the checks (see `door`), routes, which paths there are (`paths`).
"""

from __future__ import annotations

import functools
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from deepseek.errors import RequestError
from deepseek.serve.monitoring.metrics import Metrics
from deepseek.serve.rest.answer import internal_error
from deepseek.serve.rest.dispatch import Dispatcher
from deepseek.serve.rest.door import ENTRY, Door, Entry, Guard
from deepseek.serve.rest.paths import PATH_LIMIT, route_of
from deepseek.serve.rest.reply import Reply, error_reply, json_reply
from deepseek.serve.rest.shortcut import AtOnce, Shortcut, Template, Told, told, told_json
from deepseek.serve.security.audit import FIELDS, AuditLog
from deepseek.serve.tensor.requests import TooMany

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOG = logging.getLogger("deepseek.serve")


class Gateway:
    """ASGI middleware around all routes."""

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, retry_after: Callable[[], int], guard: Guard | None = None
    ) -> None:
        """`app`: a `Dispatcher`, or any application; then there is no short way (see `connection`)."""
        self._app = app
        self._inner = app if isinstance(app, Dispatcher) else None
        self.starts_at_once = app.starts_at_once if isinstance(app, Dispatcher) else None
        self.is_for_model = app.is_for_model if isinstance(app, Dispatcher) else None
        self._guard = guard or Guard()
        self._metrics = metrics
        self._retry_after = retry_after
        self._door = Door(self._guard)
        self._ids = _request_ids()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request or websocket; anything else (the start and the end) is passed on."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._app(scope, receive, send)
            return
        if kind == "http" and self._inner is not None and self._inner.is_for_model(scope):
            await (await self.whole(scope, receive))(scope, receive, send)
            return
        entry = self._enter(scope)
        id_header = (b"x-request-id", entry.id.encode())
        status = 0

        async def tagged(message: Message) -> None:
            nonlocal status
            step = message["type"]
            if step == "http.response.start" or step == "websocket.http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], id_header]
            elif step == "websocket.accept":
                status = 101
                message["headers"] = [*message.get("headers", ()), id_header]
            elif step == "websocket.close" and not status:
                status = 403  # what a server answers for an application that closes before it accepts
            await send(message)

        try:
            self._door.admit(scope, entry)
            if self._guard.facts is not None and scope["path"] == "/health" and scope.get("method") in ("GET", "HEAD"):
                await json_reply({"status": "alive", **self._guard.facts()})(scope, receive, tagged)
            else:
                await self._app(scope, receive, tagged)
        except Exception as error:
            if status:
                _LOG.exception("request %s failed after its answer began", entry.id)
                raise
            refusal = self._refusal(error, entry.id)
            status = refusal.status
            await self._refuse(refusal, entry.id, scope, receive, tagged)
        finally:
            self._leave(scope, entry, status)

    async def whole(self, scope: Scope, receive: Receive) -> Reply:
        """Return the answer to a request for a model (see `dispatch`), after the same checks as all others."""
        known: Entry | None = scope.get("state", {}).pop(ENTRY, None)
        entry = known or self._enter(scope)
        status = 499  # what it stays where the client leaves
        try:
            if known is None:
                self._door.admit(scope, entry)
            reply: Reply = await self._inner.whole(scope, receive)  # type: ignore[union-attr]
            status = reply.status
        except Exception as error:
            refusal = self._refusal(error, entry.id)
            reply = error_reply(refusal, entry.id, self._refusal_headers(refusal)).to(scope)
            status = reply.status
        finally:
            self._leave(scope, entry, status)
        reply.headers.append((b"x-request-id", entry.id.encode()))
        return reply

    def shortcut(self, scope: Scope) -> Shortcut | None:
        """Return what answers further requests with the head of `scope`, which was let in; None where nothing does."""
        at_once = None if self._inner is None or self._guard.audit is not None else self._inner.at_once(scope)
        return None if at_once is None else functools.partial(self._answer_again, scope, at_once, {})

    def _answer_again(self, scope: Scope, at_once: AtOnce, refusals: dict[int, Template], body: bytes) -> Told | Entry:
        entry = Entry(next(self._ids), time.monotonic())
        try:
            self._door.admit_again(scope, entry)
            answer = at_once(body)
        except TooMany as error:  # there may be very many
            again = error.retry_after
            if again not in refusals:
                refusals[again] = Template(self._told(error, scope, entry), entry.id)
            answered = refusals[again].told(entry.id)
        except Exception as error:
            answered = self._told(self._refusal(error, entry.id), scope, entry)
        else:
            if answer is None:
                return entry
            answered = told_json(answer, entry.id)
        self._leave(scope, entry, answered.status)
        return answered

    def _told(self, error: RequestError, scope: Scope, entry: Entry) -> Told:
        return told(error_reply(error, entry.id, self._refusal_headers(error)).to(scope), entry.id)

    def _enter(self, scope: Scope) -> Entry:
        entry = Entry(next(self._ids), time.monotonic())
        scope.setdefault("state", {})["request_id"] = entry.id
        return entry

    def _leave(self, scope: Scope, entry: Entry, status: int) -> None:
        """Give back what the limiter holds, and tell metrics and audit log."""
        guard = self._guard
        if entry.holder is not None and guard.limiter is not None:
            guard.limiter.release(entry.holder)
        seconds = time.monotonic() - entry.started
        route = route_of(scope["path"][:PATH_LIMIT])
        self._metrics.request(route, status, seconds)
        if guard.audit is not None:
            self._record(guard.audit, scope, entry.key, (route, status, seconds))

    def _refusal(self, error: Exception, request_id: str) -> RequestError:
        """Return an error as a client may know it; one of ours goes to the log."""
        if isinstance(error, RequestError):
            return error
        _LOG.error("request %s failed", request_id, exc_info=error)
        return internal_error(request_id)

    async def _refuse(self, error: RequestError, request_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        headers = self._refusal_headers(error)
        if scope["type"] == "websocket":
            if "websocket.http.response" not in scope.get("extensions", {}):
                await send({"type": "websocket.close", "code": 1008, "reason": error.problem[:120]})
                return
            send = _as_websocket(send)
        await error_reply(error, request_id, headers)(scope, receive, send)

    def _refusal_headers(self, error: RequestError) -> dict[str, str]:
        if error.status == 401:
            return {"www-authenticate": "Bearer"}
        if error.status in (429, 503):
            return {"retry-after": str(getattr(error, "retry_after", 0) or self._retry_after())}
        return {}

    def _record(self, audit: AuditLog, scope: Scope, key: str | None, ended: tuple[str, int, float]) -> None:
        state = scope["state"]
        route, status, seconds = ended
        record: dict[str, Any] = {
            "request_id": state["request_id"],
            "key": key,
            "client": (scope.get("client") or (None,))[0],
            "method": scope.get("method", "WEBSOCKET"),
            "route": route,
            **{name: state.get(name) for name in FIELDS},
            "status": status,
            "seconds": round(seconds, 6),
        }
        if audit.log_prompts and "prompt" in state:
            record["prompt"] = state["prompt"]
        audit.write(record)


def _request_ids() -> Iterator[str]:
    """Yield ids of 128 random bits, from a generator of its own: they name requests, they guard nothing."""
    bits = random.Random(os.urandom(32)).getrandbits
    while True:
        yield f"{bits(128):032x}"


def _as_websocket(send: Send) -> Send:
    """Return a `send` that gives a reply to HTTP as the refusal of a websocket (ASGI's websocket.http.response)."""

    async def translated(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    return translated
