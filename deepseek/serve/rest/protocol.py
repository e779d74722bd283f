"""Limits of uvicorn's httptools protocol: on the head of a request (431 when too large, 408 when too slow), on open
connections (503 with Retry-After), and on the time for which a client may leave its answer unread.

uvicorn has no such limits with httptools; without them one client can fill the memory or hold connections open.
Not here: the protocol that keeps them (see `connection`), limits on bodies (see `body`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import require

if TYPE_CHECKING:
    import asyncio

HEAD_LIMIT = 16 * 1024
"""Bytes of request line and headers."""
HEAD_SECONDS = 10.0
"""The longest a client may take to send them."""
WRITE_SECONDS = 60.0
"""The longest a client may take none of an answer that is ready; then its connection is cut."""


def limited_protocol(max_connections: int = 65536) -> type[asyncio.Protocol]:
    """Return the protocol class for `uvicorn.Config(http=...)`. Raises MissingExtraError."""
    httptools = require("httptools", "serve")
    require("uvicorn", "serve")
    from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

    from deepseek.serve.rest.connection import Connection
    from deepseek.serve.rest.exchange import Exchange

    exchange = type("WholeExchange", (Exchange, RequestResponseCycle), {"status_lines": STATUS_LINE})
    settings = {
        "max_connections": max_connections,
        "head_limit": HEAD_LIMIT,
        "head_seconds": HEAD_SECONDS,
        "write_seconds": WRITE_SECONDS,
        "exchange": exchange,
        "parse_url": staticmethod(httptools.parse_url),
    }
    return type("LimitedConnection", (Connection, HttpToolsProtocol), settings)
