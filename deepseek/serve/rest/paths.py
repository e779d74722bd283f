"""Paths: which there are, which need no key, which can be a route's, and under what label each is counted.

Not here: what is done with a request to one (see `gateway`, `app`).
"""

from __future__ import annotations

import re
from functools import lru_cache

from deepseek.serve.page.files import OPEN_PATHS

OPEN_ROUTES = frozenset({"/health", "/ready", "/v2/health/live", "/v2/health/ready"}) | OPEN_PATHS
"""Routes that need no API key: the page's files and the probes. They tell nothing of the models' answers."""
KNOWN_ROUTES = OPEN_ROUTES | {
    "/metrics",
    "/openapi.json",
    "/page/model",
    "/page/models",
    "/page/numbers",
    "/v1/audio/stream",
    "/v1/models",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v2",
    "/v2/repository/index",
}
PATH_LIMIT = 1024
"""Characters of the longest path that can be a route's."""

_BAD_PATH = re.compile(r"(?:^|/)\.\.?(?:/|$)|//|[\\\x00-\x1f\x7f-\x9f]")
_HIDDEN = re.compile(rb"%(?:2f|5c|25)", re.IGNORECASE)  # a slash, a backslash, a second round of encoding
_NAMED = re.compile(
    r"/v1/models/[^/:]+(?P<v1>/versions/[^/:]+)?(?P<verb>:predict)?"
    r"|/v2/(?P<repository>repository/)?models/[^/]+(?P<v2>/versions/[^/]+)?(?P<part>/(?:ready|infer|generate|generate_stream|load|unload))?"
)


@lru_cache(maxsize=1024)
def route_of(path: str) -> str:
    """Return a label of few values for a path: paths are the client's choice."""
    if path in KNOWN_ROUTES:
        return path
    match = _NAMED.fullmatch(path)
    if match is None:
        return "other"
    if path.startswith("/v1/"):
        version, verb = match["v1"], match["verb"] or ""
        return f"/v1/models/{{name}}{'/versions/{version}' if version else ''}{verb}"
    version, part = match["v2"], match["part"] or ""
    return f"/v2/{match['repository'] or ''}models/{{name}}{'/versions/{version}' if version else ''}{part}"


@lru_cache(maxsize=1024)
def is_plain(path: str, raw_path: bytes) -> bool:
    """Return whether a path means the same to every reader (RFC 3986, section 6.2.2)."""
    return not (len(raw_path) > 3 * PATH_LIMIT or _BAD_PATH.search(path) or _HIDDEN.search(raw_path))
