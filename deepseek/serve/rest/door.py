"""Who may come in: Host and Origin, API key, rate, path. What a server is guarded by, and the checks themselves.

A browser page elsewhere can't use a server on this machine: with a loopback address only loopback names are taken as
Host (DNS rebinding), what changes something or opens a websocket must not come from another page's Origin, and there
are no CORS headers. The order is cheapest first, and nothing is told to whom a check has turned away.
Not here: what is done with who came in, and errors (see `gateway`).
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, NamedTuple

from deepseek.errors import RequestError
from deepseek.serve.rest.paths import OPEN_ROUTES, PATH_LIMIT, is_plain
from deepseek.serve.security.audit import AuditLog
from deepseek.serve.security.keys import KeyRing
from deepseek.serve.security.limits import RateLimiter, client_of
from deepseek.serve.security.urls import Fetcher

if TYPE_CHECKING:
    from starlette.types import Scope

KEY_PROTOCOL = "key."
"""A browser can't set a websocket's headers: it offers the subprotocol `key.` + base64url(key) beside its own."""

ENTRY = "deepseek.entry"
"""What a request's state may have: its entry, where it was let in already (see `shortcut`)."""
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


class Entry:
    """What is known of a request from its begin to its end."""

    __slots__ = ("holder", "id", "key", "started")

    def __init__(self, request_id: str, started: float) -> None:
        self.id = request_id
        self.started = started
        self.key: str | None = None
        """The name of its API key."""
        self.holder: str | None = None
        """The client whose open request it is, where those are counted."""


class Door:
    """The checks of one server."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._good_hosts: set[bytes] = set()

    def admit(self, scope: Scope, entry: Entry) -> None:
        """Let a request in; note in its entry and state whose it is.

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
                self._check_client(scope, entry, authorization, protocols)
                scope["state"]["key"] = entry.key
            if len(path) > PATH_LIMIT or not is_plain(path, (scope.get("raw_path") or b"")[: 3 * PATH_LIMIT + 1]):
                raise RequestError("there is no such path here", status=404)

    def admit_again(self, scope: Scope, entry: Entry) -> None:
        """Let in one more request with the head of `scope`, which was let in: its key and rate are checked again.

        Raises RequestError (401, 429).
        """
        if self._guard.keys is not None or self._guard.limiter is not None:
            authorization = dict(scope["headers"]).get(b"authorization", b"")
            self._check_client(scope, entry, authorization, b"")

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

    def _check_client(self, scope: Scope, entry: Entry, authorization: bytes, protocols: bytes) -> None:
        """Check key and rate, and note whose they are."""
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
            entry.key = owner.name
            client, rate = f"key {owner.name}", owner.requests_per_minute
        if guard.limiter is None:
            return
        refusal = guard.limiter.check(client, rate) or guard.limiter.acquire(client)
        if refusal is not None:
            raise refusal
        entry.holder = client


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


def _without_port(host: str) -> str:
    return host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
