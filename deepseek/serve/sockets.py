"""Listening sockets: bound before anything is loaded, so that a port in use is told at once, with what to do."""

from __future__ import annotations

import errno
import os
import socket

from deepseek.errors import ConfigError

_FIXES = {
    errno.EADDRINUSE: "stop what listens there, or choose another port (--port 0 takes a free one)",
    errno.EACCES: "choose a port above 1023",
    errno.EADDRNOTAVAIL: "choose an address of this machine, such as 127.0.0.1",
}


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address. Raises ConfigError that says what to do."""
    if not 0 <= port <= 65535:
        raise ConfigError("no such port", found=port, wanted="0 to 65535 (0 takes a free one)")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"the host '{host}' can't be found", found=error, fix="use 127.0.0.1 or 0.0.0.0") from error
    try:
        if os.name == "posix":  # elsewhere it would let two servers share the port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise address_error(host, port, error) from error
    return bound


def reserve(host: str, port: int) -> socket.socket:
    """Return a socket that keeps a port for several processes, each of which will listen there (SO_REUSEPORT).

    It takes no connections itself. Raises ConfigError where the port is in use, or the system can't share ports.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigError("this system can't share a port between processes", fix="use --workers 1")
    first = bind(host, port)  # without sharing: tells whether another program is there
    family, address = first.family, first.getsockname()
    first.close()
    kept = socket.socket(family, socket.SOCK_STREAM)
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        kept.bind(address)
    except OSError as error:
        kept.close()
        raise address_error(host, port, error) from error
    return kept


def url_of(host: str, port: int, *, tls: bool) -> str:
    """Return where a server listens, without a slash at the end."""
    return f"{'https' if tls else 'http'}://{address_of(host, port)}"


def address_of(host: str, port: int) -> str:
    """Return `host:port`, with an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address_error(host: str, port: int, error: OSError) -> ConfigError:
    """Return what to tell about an address that can't be used."""
    reason = "is in use" if error.errno == errno.EADDRINUSE else "can't be used"
    fix = _FIXES.get(error.errno or 0, "choose another port")
    return ConfigError(f"port {port} on {host} {reason}", found=error.strerror, fix=fix)
