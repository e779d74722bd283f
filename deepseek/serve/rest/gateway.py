"""What every request passes first: Host check, API key; and last: errors in one form, an id, metrics.

A browser page elsewhere can't use a server on this machine: with a loopback address only loopback names are taken as
Host (DNS rebinding), there are no CORS headers, and bodies must be declared as JSON. Not here: routes.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import time
import uuid
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from deepseek.errors import RequestError
from deepseek.serve.monitoring.metrics import Metrics
from deepseek.serve.rest.answer import internal_error
from deepseek.serve.rest.reply import error_reply

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOG = logging.getLogger("deepseek.serve")

OPEN_ROUTES = frozenset({"/", "/health", "/ready"})
"""Routes that need no API key: the page's HTML and the probes. They tell nothing of the models' answers."""
KNOWN_ROUTES = OPEN_ROUTES | {"/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions"}


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


class Gateway:
    """ASGI middleware around all routes."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_key: str | None,
        hosts: frozenset[str] | None,
        metrics: Metrics,
        retry_after: Callable[[], int],
    ) -> None:
        self._app = app
        self._key = None if api_key is None else _digest(api_key.encode())
        self._hosts = hosts
        self._metrics = metrics
        self._retry_after = retry_after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; anything but HTTP is passed on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, tagged)
        except Exception as error:
            if status:
                _LOG.exception("request %s failed after its answer began", request_id)
                raise
            refusal = error if isinstance(error, RequestError) else internal_error(request_id)
            if refusal is not error:
                _LOG.error("request %s failed", request_id, exc_info=error)
            await error_reply(refusal, request_id, self._headers(refusal))(scope, receive, tagged)
        finally:
            self._metrics.request(_route(scope["path"]), status, time.monotonic() - started)

    def _check(self, scope: Scope) -> None:
        """Raise RequestError for a foreign Host (403) or a missing or wrong key (401)."""
        headers = scope["headers"]
        if self._hosts is not None:
            names = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
            if not names or any(_without_port(name) not in self._hosts for name in names):
                raise RequestError(
                    "this Host is not served here", status=403, fix="use http://127.0.0.1 or --allowed-host"
                )
        if self._key is not None and scope["path"] not in OPEN_ROUTES:
            given = next((value for name, value in headers if name == b"authorization"), b"")
            scheme, _, key = given.partition(b" ")
            if not hmac.compare_digest(_digest(key.strip()), self._key) or scheme.lower() != b"bearer":
                raise RequestError(
                    "missing or wrong API key", status=401, wanted="the header Authorization: Bearer KEY"
                )

    def _headers(self, error: RequestError) -> dict[str, str]:
        if error.status == 401:
            return {"www-authenticate": "Bearer"}
        return {"retry-after": str(self._retry_after())} if error.status in (429, 503) else {}


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()  # equal lengths, so that comparing tells nothing about the key's


def _without_port(host: str) -> str:
    return host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]


def _route(path: str) -> str:
    """Return a label of few values: paths are the client's choice."""
    if path in KNOWN_ROUTES:
        return path
    return "/v1/models/{name}" if path.startswith("/v1/models/") else "other"
