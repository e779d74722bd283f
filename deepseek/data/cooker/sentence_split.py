"""Texts cut into sentences, in any script; the pieces joined are the text again.

A sentence ends after 。！？； and after . ! ? before a space, with the closing quotes and brackets behind, and at line
ends. Abbreviations are not known: "Dr. Who" is two pieces, which does no harm where pieces are packed together again.
"""

from __future__ import annotations

import re

_END = re.compile(r"[。！？；…]+[”’」』）】》\"')\]]*|[.!?]+[”’\"')\]]*(?=\s)|\n")
_SPACE_AFTER = re.compile(r"\s*")


def sentences(text: str) -> list[str]:
    """Return the sentences of `text`, each with the white space behind it. `"".join` of them is `text`."""
    pieces, start = [], 0
    for match in _END.finditer(text):
        if match.end() <= start:
            continue
        space = _SPACE_AFTER.match(text, match.end())
        end = space.end() if space else match.end()
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]] if start < len(text) else pieces
