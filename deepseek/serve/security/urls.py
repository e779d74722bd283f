"""Fetching what a request names by URL: nothing, unless the operator allowed its host.

A URL is parsed once and the parts are what is used; its host must be on the list; every address it resolves to must be
a public one; the connection goes to the very address that was checked (a second answer of the name server changes
nothing), with the name kept for TLS and the Host header. Redirects are not followed: where one leads is nobody's
promise. Sizes and times are capped whatever the other side says.

Sources: OWASP's cheat sheet on server-side request forgery; IANA's registries of special-purpose addresses
(RFC 6890); RFC 6052 and RFC 3056 for IPv4 addresses inside IPv6 ones. Not here: what the bytes mean.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection
from typing import NamedTuple
from urllib.parse import urlsplit

from deepseek.errors import ConfigError, RequestError

_PORTS = {"http": 80, "https": 443}
_LONGEST = 2048
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,62})(?:\.[a-z0-9_][a-z0-9_-]{0,62})*")
_URL = re.compile(r"[!-\[\]-~]+")  # printable ASCII without the backslash, which parsers read differently
_UNICAST = ipaddress.IPv6Network("2000::/3")  # all that IANA has given out of IPv6, NAT64's prefixes not among it
_SPECIAL = tuple(
    ipaddress.ip_network(block)  # of the special-purpose registries, for Pythons whose is_global is older
    for block in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "3fff::/20")
)

Resolve = Callable[[str, int], Collection[str]]
Connect = Callable[[str, int, float], socket.socket]


class _Target(NamedTuple):
    scheme: str
    host: str
    port: int
    path: str


class Fetcher:
    """Gets the content of URLs on allowed hosts."""

    def __init__(
        self,
        allowed_hosts: Collection[str] = (),
        *,
        seconds: float = 10.0,
        resolve: Resolve | None = None,
        connect: Connect | None = None,
    ) -> None:
        """Take hosts as `name` (ports 80 and 443) or `name:port`; without any, nothing is fetched.

        `seconds` is for one fetch in all; resolving a name has the machine's own limit. `resolve` and `connect` replace
        the system's. Raises ConfigError for what is no host.
        """
        self._allowed = frozenset(_allowed(entry) for entry in allowed_hosts)
        self._seconds = seconds
        self._resolve = resolve or _resolve
        self._connect = connect or _connect

    def get(self, url: str, max_bytes: int) -> bytes:
        """Return the content of `url`, for a thread beside the event loop.

        Raises RequestError: 400 for a URL that is wrong, not allowed or leads elsewhere, 413 for more than `max_bytes`,
        502 where the other side fails, 504 where it is too slow.
        """
        target = self._parse(url)
        address = self._address(target)
        deadline = time.monotonic() + self._seconds
        try:
            connected = self._connect(address, target.port, self._seconds)
        except OSError:
            raise _failed(target, "it can't be reached") from None
        late = threading.Event()
        same = connected.dup()  # TLS takes the first one over
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, (same, late))
        timer.daemon = True
        timer.start()
        try:
            content = _exchange(target, connected, max_bytes)
            if not late.is_set():  # else it may be the part that came before the end was made
                return content
            raise TimeoutError
        except (OSError, http.client.HTTPException, ValueError) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                problem = f"'{target.host}' did not answer within {self._seconds:g} s"
                raise RequestError(problem, field="url", status=504) from None
            if isinstance(error, RequestError):
                raise
            raise _failed(target, "it broke off or sent what is no HTTP") from None
        finally:
            timer.cancel()
            same.close()
            connected.close()

    def _parse(self, url: str) -> _Target:
        """Return the parts of a URL on an allowed host. Raises RequestError."""
        if not isinstance(url, str) or len(url) > _LONGEST or not _URL.fullmatch(url):
            raise _refused("the URL is too long or has characters that a URL can't have")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise _refused("the URL can't be read") from None
        scheme, host = parts.scheme.lower(), (parts.hostname or "").lower().removesuffix(".")
        if scheme not in _PORTS:
            raise _refused("only http and https URLs are fetched")
        if parts.username is not None or parts.password is not None or "@" in parts.netloc:
            raise _refused("a URL with a user name or password is not fetched")
        port = _PORTS[scheme] if port is None else port
        entry = host if port in _PORTS.values() else f"{host}:{port}"
        if not _HOST.fullmatch(host) or entry not in self._allowed:
            raise _refused("URLs on this host are not fetched", fix="send the content itself (b64)")
        return _Target(scheme, host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))

    def _address(self, target: _Target) -> str:
        """Return the address to connect to; all that the name resolves to must be public. Raises RequestError."""
        try:
            found = list(dict.fromkeys(self._resolve(target.host, target.port)))
        except (OSError, UnicodeError):
            raise _failed(target, "its name does not resolve") from None
        if not found or not all(is_public(address) for address in found):
            raise _refused("this host does not lead to public addresses only")
        return found[0]


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the open internet: not private, loopback, link-local (cloud metadata),
    shared, multicast, reserved or unspecified, nor an IPv6 address that carries such an IPv4 one."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False  # also an address with a zone ("fe80::1%eth0")
    if isinstance(found, ipaddress.IPv6Address):
        if found not in _UNICAST or found.sixtofour or found.scope_id is not None:
            return False
    if any(found in block for block in _SPECIAL if block.version == found.version):
        return False
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified)


def _exchange(target: _Target, connected: socket.socket, max_bytes: int) -> bytes:
    """Send the request and return the content of the answer."""
    if target.scheme == "https":
        context = ssl.create_default_context()
        connected = context.wrap_socket(connected, server_hostname=target.host)
    connection = http.client.HTTPConnection(target.host, target.port)
    connection.sock = connected
    try:
        host = target.host if target.port == _PORTS[target.scheme] else f"{target.host}:{target.port}"
        connection.putrequest("GET", target.path, skip_host=True, skip_accept_encoding=True)
        for name, value in (("Host", host), ("Accept-Encoding", "identity"), ("Connection", "close")):
            connection.putheader(name, value)
        connection.endheaders()
        with connection.getresponse() as response:
            return _content(target, response, max_bytes)
    finally:
        connection.close()
        connected.close()


def _content(target: _Target, response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    if 300 <= response.status < 400:
        raise _refused("the URL leads elsewhere; redirects are not followed")
    if response.status != 200:
        raise _failed(target, f"it answers {response.status}")
    if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise _failed(target, "its answer is compressed though that was not asked for")
    if (response.length or 0) > max_bytes:
        raise _too_large(max_bytes)
    content = response.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise _too_large(max_bytes)
    if response.length:  # fewer bytes came than were declared
        raise _failed(target, "its answer is incomplete")
    return content


def _allowed(entry: str) -> str:
    host, _, port = entry.strip().lower().partition(":")
    host = host.removesuffix(".")
    if not _HOST.fullmatch(host) or (port and not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536)):
        raise ConfigError(
            "this is no host that URLs can be allowed on",
            found=ascii(entry),
            wanted="a name such as images.example.org, or with a port: images.example.org:8443",
        )
    return f"{host}:{int(port)}" if port and int(port) not in _PORTS.values() else host


def _resolve(host: str, port: int) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _connect(address: str, port: int, seconds: float) -> socket.socket:
    return socket.create_connection((address, port), timeout=seconds)


def _cut(connected: socket.socket, late: threading.Event) -> None:
    """End a connection whose time is up, wherever its thread waits (each read alone would have its own limit)."""
    late.set()
    try:
        connected.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def _refused(problem: str, fix: str | None = None) -> RequestError:
    return RequestError(problem, field="url", fix=fix)


def _failed(target: _Target, problem: str) -> RequestError:
    return RequestError(f"'{target.host}' could not be fetched: {problem}", field="url", status=502)


def _too_large(max_bytes: int) -> RequestError:
    return RequestError("the content of the URL is too large", field="url", status=413, wanted=f"{max_bytes} bytes")
