"""The page's files: a fixed table of paths, read once. No path from a request touches the disk.

Not here: what the page asks the server for (see `routes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_HTML = "text/html; charset=utf-8"
_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
_PARTS = (
    "style.css",
    "app.js",
    "api.js",
    "audio.js",
    "chat.js",
    "command.js",
    "dashboard.js",
    "draw.js",
    "element.js",
    "form.js",
    "image.js",
    "microphone.js",
    "recorder.js",
    "row.js",
    "stream.js",
    "tensors.js",
    "wav.js",
    "words.js",
)
_FILES: Mapping[str, tuple[str, str]] = {
    "/": ("index.html", _HTML),
    "/dashboard": ("index.html", _HTML),
    **{f"/page/{name}": (name, _TYPES[name.rpartition(".")[2]]) for name in _PARTS},
}
OPEN_PATHS = frozenset(_FILES)
"""Paths of files; they need no API key, for they tell nothing of the models."""

HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}
"""Scripts and styles come from this server's own files alone, and nothing may be sent elsewhere."""


class PageFile(NamedTuple):
    """A file as it is sent."""

    body: bytes
    content_type: str


def page_files() -> dict[str, PageFile]:
    """Return the files by path."""
    folder = Path(__file__).parent
    return {path: PageFile((folder / name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}
