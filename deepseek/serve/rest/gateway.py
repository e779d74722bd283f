"""What every request passes first: Host and Origin, API key, rate, path; and last: errors in one form, an id, counts.

A browser page elsewhere can't use a server on this machine: with a loopback address only loopback names are taken as
Host (DNS rebinding), what changes something or opens a websocket must not come from another page's Origin, and there
are no CORS headers. The order is cheapest first, and nothing is told to whom a check has turned away. All of it holds
for every route and for websockets. Not here: routes, and which paths there are (see `paths`).
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import logging
import os
import random
import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from deepseek.errors import RequestError
from deepseek.serve.monitoring.metrics import Metrics
from deepseek.serve.rest.answer import internal_error
from deepseek.serve.rest.dispatch import Dispatcher
from deepseek.serve.rest.paths import OPEN_ROUTES, PATH_LIMIT, is_plain, route_of
from deepseek.serve.rest.reply import Reply, error_reply, json_reply
from deepseek.serve.security.audit import FIELDS, AuditLog
from deepseek.serve.security.keys import KeyRing
from deepseek.serve.security.limits import RateLimiter, client_of
from deepseek.serve.security.urls import Fetcher

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOG = logging.getLogger("deepseek.serve")

KEY_PROTOCOL = "key."
"""A browser can't set a websocket's headers: it offers the subprotocol `key.` + base64url(key) beside its own."""

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard(NamedTuple):
    """What a server's gateway checks and keeps; None leaves a check out."""

    hosts: frozenset[str] | None = None
    """Names that a Host header may carry."""
    keys: KeyRing | None = None
    limiter: RateLimiter | None = None
    audit: AuditLog | None = None
    fetcher: Fetcher | None = None
    """Gets content that a request names by URL."""
    facts: Callable[[], dict[str, Any]] | None = None
    """What `/health` tells beside "alive": which worker this is and how often workers were restarted."""


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server bound to `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def hosts_for(host: str, allowed: Collection[str] = ()) -> frozenset[str] | None:
    """Return the names that a Host header may carry, None for any (bound beyond this machine, none given)."""
    if is_loopback(host):
        return frozenset({"localhost", "127.0.0.1", "[::1]", host, *allowed})
    return frozenset({"localhost", "127.0.0.1", "[::1]", host, *allowed}) if allowed else None


class _Entry:
    """What is known of a request from its begin to its end."""

    __slots__ = ("holder", "id", "started")

    def __init__(self, request_id: str, started: float) -> None:
        self.id = request_id
        self.started = started
        self.holder: str | None = None


class Gateway:
    """ASGI middleware around all routes."""

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, retry_after: Callable[[], int], guard: Guard | None = None
    ) -> None:
        """`app`: a `Dispatcher`, or any application; then there is no short way (see `connection`)."""
        self._app = app
        self._inner = app if isinstance(app, Dispatcher) else None
        self.starts_at_once = app.starts_at_once if isinstance(app, Dispatcher) else None
        self._guard = guard or Guard()
        self._metrics = metrics
        self._retry_after = retry_after
        self._ids = _request_ids()
        self._good_hosts: set[bytes] = set()

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
            self._admit(scope, entry)
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
        entry = self._enter(scope)
        status = 0
        try:
            self._admit(scope, entry)
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

    def _enter(self, scope: Scope) -> _Entry:
        entry = _Entry(next(self._ids), time.monotonic())
        scope.setdefault("state", {})["request_id"] = entry.id
        return entry

    def _leave(self, scope: Scope, entry: _Entry, status: int) -> None:
        """Give back what the limiter holds, and tell metrics and audit log."""
        guard = self._guard
        if entry.holder is not None and guard.limiter is not None:
            guard.limiter.release(entry.holder)
        seconds = time.monotonic() - entry.started
        route = route_of(scope["path"][:PATH_LIMIT])
        self._metrics.request(route, status, seconds)
        if guard.audit is not None:
            self._record(guard.audit, scope, (route, status, seconds))

    def _refusal(self, error: Exception, request_id: str) -> RequestError:
        """Return an error as a client may know it; one of ours goes to the log."""
        if isinstance(error, RequestError):
            return error
        _LOG.error("request %s failed", request_id, exc_info=error)
        return internal_error(request_id)

    def _admit(self, scope: Scope, entry: _Entry) -> None:
        """Let a request in; note the client whose open request it is, where those are counted.

        Raises RequestError: 403 for a foreign Host or Origin, 401 for a missing or wrong key, 429, 404 for a bad path.
        """
        guard = self._guard
        host: bytes | None = None
        authorization = origin = protocols = b""
        for name, value in scope["headers"]:
            if name == b"host":
                if host is not None:
                    raise RequestError("there are two Host headers", status=403, wanted="one")
                host = value
            elif name == b"authorization":
                authorization = value
            elif name == b"origin":
                origin = value
            elif name == b"sec-websocket-protocol":
                protocols = value
        if guard.hosts is not None and host not in self._good_hosts:
            self._check_host(host or b"", guard.hosts)
        if origin and scope.get("method", "") not in _SAFE:
            self._check_origin(origin, host or b"")
        path = scope["path"]
        if path not in OPEN_ROUTES:
            if guard.keys is not None or guard.limiter is not None:
                entry.holder = self._check_client(scope, scope["state"], authorization, protocols)
            if len(path) > PATH_LIMIT or not is_plain(path, (scope.get("raw_path") or b"")[: 3 * PATH_LIMIT + 1]):
                raise RequestError("there is no such path here", status=404)

    def _check_host(self, host: bytes, hosts: frozenset[str]) -> None:
        if _without_port(host.decode("latin-1").lower()) not in hosts:
            raise RequestError("this Host is not served here", status=403, fix="use http://127.0.0.1 or --allowed-host")
        if len(self._good_hosts) < 64:  # one name with all its ports would be many
            self._good_hosts.add(host)

    def _check_origin(self, origin: bytes, host: bytes) -> None:
        """Raise RequestError where a page of another host would change something or open a websocket."""
        _, _, place = origin.decode("latin-1").lower().partition("://")
        if place != host.decode("latin-1").lower() and _without_port(place) not in (self._guard.hosts or ()):
            raise RequestError("pages of other hosts can't use this server", status=403, fix="--allowed-host NAME")

    def _check_client(self, scope: Scope, state: dict[str, Any], authorization: bytes, protocols: bytes) -> str | None:
        """Check key and rate, and note the key's name in `state`."""
        guard = self._guard
        client = f"address {client_of((scope.get('client') or ('',))[0])}" if guard.limiter is not None else ""
        rate = None
        if guard.keys is not None:
            scheme, _, key = authorization.partition(b" ")
            if scheme.lower() != b"bearer":
                key = _key_among(protocols) if scope["type"] == "websocket" else b""
            owner = guard.keys.allows(key.strip()) if key else None
            if owner is None:
                refusal = guard.limiter.check(client) if guard.limiter is not None else None  # guesses count too
                raise refusal or RequestError(
                    "missing or wrong API key", status=401, wanted="the header Authorization: Bearer KEY"
                )
            state["key"] = owner.name
            client, rate = f"key {owner.name}", owner.requests_per_minute
        if guard.limiter is None:
            return None
        refusal = guard.limiter.check(client, rate) or guard.limiter.acquire(client)
        if refusal is not None:
            raise refusal
        return client

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

    def _record(self, audit: AuditLog, scope: Scope, ended: tuple[str, int, float]) -> None:
        state = scope["state"]
        route, status, seconds = ended
        record: dict[str, Any] = {
            "request_id": state["request_id"],
            "key": state.get("key"),
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


def _key_among(protocols: bytes) -> bytes:
    """Return the key offered as a websocket's subprotocol, or nothing."""
    for offered in protocols.decode("latin-1").split(","):
        name = offered.strip()
        if name.startswith(KEY_PROTOCOL):
            text = name.removeprefix(KEY_PROTOCOL)
            try:
                return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            except (binascii.Error, ValueError):
                return b""
    return b""


def _as_websocket(send: Send) -> Send:
    """Return a `send` that gives a reply to HTTP as the refusal of a websocket (ASGI's websocket.http.response)."""

    async def translated(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    return translated


def _without_port(host: str) -> str:
    return host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
